"""When prefetch that was given up is tried again."""

from __future__ import annotations

from fusefs.policy.kinds import Kind
from fusefs.policy.plan import FilePlan, Priority
from fusefs.policy.setback import PAUSE_FIRST_S, PAUSE_MAX_S, Setback

BLOCK = 4096


def test_probes_come_at_growing_intervals_until_something_lands() -> None:
    """The pause doubles with each probe up to its limit; the first byte that lands ends it."""
    setback = Setback()
    setback.tried(0.0)
    assert setback.may_try(0.0) and not setback.lasts
    setback.gave_up(0.0)
    now = 0.0
    pauses: list[float] = []
    for _ in range(8):
        assert setback.lasts and not setback.may_try(now)
        pauses.append(setback.until_s - now)
        now = setback.until_s
        assert setback.may_try(now)
        setback.tried(now)
    assert pauses[:4] == [PAUSE_FIRST_S * 2**n for n in range(4)]
    assert pauses[-1] == PAUSE_MAX_S
    setback.landed()
    assert setback.may_try(now) and not setback.lasts


def test_a_wave_of_failures_counts_once() -> None:
    """Thirty requests that fail in one moment make no longer pause than one."""
    setback = Setback()
    for _ in range(30):
        setback.gave_up(1.0)
    assert setback.until_s == 1.0 + PAUSE_FIRST_S


def plan_of(blocks: int, kind: Kind) -> FilePlan:
    """A plan with ranges of four blocks."""
    return FilePlan(blocks * BLOCK, BLOCK, 4, kind)


def drain(plan: FilePlan, priority: Priority, taken: set[int]) -> list[int]:
    """Take all that the plan wants; the blocks in its order."""
    order: list[int] = []
    while run := plan.next_run(priority, taken.__contains__):
        order += range(run[0], run[0] + run[1])
        taken.update(order)
    return order


def test_what_was_given_up_is_wanted_again_and_first() -> None:
    """Blocks behind the cursor that were lost come back before the rest, each once."""
    plan = plan_of(24, Kind.SHARD)
    plan.want_whole(0)
    taken: set[int] = set()
    for _ in range(4):
        first, count = plan.next_run(Priority.REST, taken.__contains__) or (0, 0)
        taken.update(range(first, first + count))
    assert taken == set(range(16))
    for first, count in ((4, 4), (8, 2), (4, 4)):
        taken -= set(range(first, first + count))
        plan.want_again(first, count)
    plan.mark_consumed(5)  # a reader was there meanwhile
    assert drain(plan, Priority.REST, taken) == [4, 6, 7, 8, 9, *range(16, 24)]
    assert plan.exhausted()


def test_what_was_given_up_of_a_file_that_was_closed_stays_away() -> None:
    """Nobody has it open: nothing of it is wanted, then or later."""
    plan = plan_of(8, Kind.SHARD)
    plan.want_whole(0)
    plan.want_again(0, 4)
    plan.stop()
    plan.want_again(4, 4)
    assert plan.next_run(Priority.REST, lambda _: False) is None


def test_the_tail_of_an_archive_is_come_back_to() -> None:
    """The directory of an archive that was given up is fetched again, its end first."""
    plan = plan_of(2000, Kind.ARCHIVE)
    plan.want_tail()
    taken: set[int] = set()
    tail = drain(plan, Priority.HEAD, taken)
    assert tail and max(tail) == 1999
    taken -= {1998, 1999}
    plan.want_again(1998, 2)
    assert sorted(drain(plan, Priority.HEAD, taken)) == [1998, 1999]
