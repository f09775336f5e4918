"""The controller of connections and ranges, fed with facts about requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.budget import ArenaBudget, arena_budget
from fusefs.policy.concurrency import (
    CALM_S,
    HOLD_FIRST_S,
    LIMIT_MIN,
    RETRY_AFTER_MAX_S,
    Concurrency,
    Epoch,
)

MIB = 1 << 20
GIB = 1 << 30

PerByte = Callable[[int], float]
"""Seconds that a connection takes for a byte, with so many of them in use."""


def budget(
    memory: int = 2 * GIB, connections: int | None = None, range_size: int | None = None
) -> ArenaBudget:
    return arena_budget(memory, 2, MIB, range_size, connections)


def link(per_connection: float, total: float) -> PerByte:
    """Connections with a rate each, on a link."""
    return lambda n: max(1 / per_connection, n / total)


FULL = link(400e6, 1.7e9)
"""28 connections fill this link six times over."""


def drive(
    control: Concurrency,
    now: float,
    per_byte: PerByte,
    seconds: float,
    use: float = 1.0,
    is_busy: bool = False,
    first_s: float = 0.02,
) -> float:
    """Let all connections (or the part `use`) fetch full ranges for some time; the time then."""
    end = now + seconds
    while now < end:
        n = max(1, round(control.prefetch_limit * use))
        size = control.range_blocks * MIB
        for number in range(n):
            control.started(size, number + 1, now)
        first = first_s + MIB * per_byte(n)
        for _ in range(n):
            control.landed(MIB, first, True, now + first)
        rest = (size - MIB) * per_byte(n)
        now += first + max(rest, 0.001)
        for number in range(n):
            if size > MIB:
                control.landed(size - MIB, rest, False, now)
            if control.is_due(now):
                control.review(now, is_busy)
            control.ended(n - number - 1, now)
    return now


def test_slow_connections_become_many() -> None:
    """While twice the connections give more, the limit rises, to the most there may be."""
    control = Concurrency(budget())
    assert control.limit == 32
    drive(control, 0.0, link(10e6, 1.7e9), 8.0)
    assert control.limit == 256


def test_requests_that_fill_the_limit_one_after_the_other_count() -> None:
    """Real requests are sent some milliseconds apart: their first bytes tell, not the next wave's.

    At 10 MB/s that wave comes a second later, and a load of some GB would never reach its speed.
    """
    control = Concurrency(budget())
    wave = control.prefetch_limit
    sent = [0.002 * number for number in range(wave)]
    for number, now in enumerate(sent):
        control.started(8 * MIB, number + 1, now)
    for now in sent:
        control.landed(MIB, 0.2, True, now + 0.2)
    for now in sent:
        control.landed(MIB, 0.1, False, now + 0.3)
    assert control.is_due(0.4)
    control.review(0.4, False)
    assert control.limit == 64
    more = control.prefetch_limit
    for number in range(wave, more):
        control.started(8 * MIB, number + 1, 0.4 + 0.002 * number)
    for number in range(wave, more):
        control.landed(MIB, 0.2, True, 0.6 + 0.002 * number)
    for number in range(wave, more):
        control.landed(MIB, 0.1, False, 0.7 + 0.002 * number)
    assert control.is_due(0.9)


def test_a_full_link_keeps_the_number_it_has() -> None:
    """Where more connections give nothing, the limit comes back and stays for a while."""
    control = Concurrency(budget())
    seen = set()
    now = 0.0
    while now < HOLD_FIRST_S:
        now = drive(control, now, FULL, 0.2, first_s=0.0)
        seen.add(control.limit)
    assert seen == {32, 64}
    assert control.limit == 32
    now = drive(control, now, FULL, 3.0, first_s=0.0)
    drive(control, now, link(10e6, 1.7e9), 20 * HOLD_FIRST_S)
    assert control.limit == 256, "a link that changed is noticed at a later try"


def test_tries_become_rare() -> None:
    """Each try that gives nothing doubles the time to the next one."""
    control = Concurrency(budget())
    now, tries, before = 0.0, [], control.limit
    while now < 20 * HOLD_FIRST_S:
        now = drive(control, now, FULL, 0.1, first_s=0.0)
        if control.limit > before:
            tries.append(now)
        before = control.limit
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert len(pauses) >= 3
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(pauses))


def test_nothing_is_tried_while_the_cores_are_busy() -> None:
    """A machine that has no core left gets no more connections."""
    control = Concurrency(budget())
    now = drive(control, 0.0, link(10e6, 1.7e9), 5.0, is_busy=True)
    assert control.limit == 32
    drive(control, now, link(10e6, 1.7e9), 5.0)
    assert control.limit == 256


def test_a_limit_that_nobody_reaches_says_nothing() -> None:
    """Half of the connections in use: the reader is the bound, and nothing is tried."""
    control = Concurrency(budget())
    drive(control, 0.0, link(10e6, 1.7e9), 10.0, use=0.5)
    assert control.limit == 32


def test_fresh_connections_may_be_slow_at_first() -> None:
    """A higher limit is judged again once its connections are warm, before it is given up."""
    control = Concurrency(budget())
    now = drive(control, 0.0, link(10e6, 1.7e9), 0.8)
    assert control.limit == 64
    now = drive(control, now, link(10e6, 1.7e9), 0.1, first_s=2.0)  # handshakes
    assert control.limit == 64
    drive(control, now, link(10e6, 1.7e9), 8.0)
    assert control.limit == 256


def test_a_number_given_is_never_exceeded() -> None:
    """`engine.connections` and `engine.range_size` are bounds."""
    control = Concurrency(budget(connections=48, range_size=4 * MIB))
    assert (control.limit, control.range_blocks) == (48, 4)
    now = drive(control, 0.0, link(10e6, 1.7e9), 5.0)
    assert (control.limit, control.range_blocks) == (48, 4)
    control.throttled(now, None)
    assert control.limit < 48 and control.range_blocks == 4


def test_one_connection_still_prefetches() -> None:
    """The reserve for demand never takes the last one."""
    assert Concurrency(budget(connections=1)).prefetch_limit == 1
    assert Concurrency(budget(connections=2)).prefetch_limit == 1
    assert Concurrency(budget(connections=32)).prefetch_limit == 28


def test_a_throttled_answer_slows_down_at_once() -> None:
    """Fewer and larger requests, no prefetch before Retry-After; one step for one wave."""
    control = Concurrency(budget())
    now = drive(control, 0.0, FULL, 0.1, is_busy=True)
    control.throttled(now, 3.0)
    assert control.limit == 22 and control.range_blocks == 16
    assert control.prefetch_after_s == now + 3.0
    for _ in range(20):
        control.throttled(now + 0.5, 1.0)
    assert control.limit == 22 and control.range_blocks == 16
    assert control.prefetch_after_s == now + 3.0, "an earlier end does not shorten it"
    control.throttled(now + 3.0 + CALM_S, None)
    assert control.limit == 15 and control.range_blocks == 32


def test_it_recovers_from_throttling() -> None:
    """Up to near the old limit at once, beyond it after a rest, and in the end all is forgotten."""
    control = Concurrency(budget())
    now = drive(control, 0.0, FULL, 2.0, first_s=0.0)
    control.throttled(now, None)
    now = drive(control, now + CALM_S, FULL, 3.0)
    assert 24 <= control.limit <= 0.85 * 32
    assert control.is_throttled
    drive(control, now, FULL, 60 * HOLD_FIRST_S)
    assert not control.is_throttled
    assert control.limit >= 32 and control.range_blocks == 8


def test_an_outage_says_nothing_of_the_limit() -> None:
    """A store that refuses everything for a while gets the old limit back soon afterwards."""
    control = Concurrency(budget())
    now = drive(control, 0.0, FULL, 0.1, is_busy=True)
    for _ in range(30):
        control.throttled(now, None)
        now += CALM_S
    assert control.limit == LIMIT_MIN
    drive(control, now, link(80e6, 1.7e9), 10.0)
    assert control.limit >= 24


def test_small_memory_makes_ranges_smaller_as_connections_rise() -> None:
    """What is in flight fits what prefetch may hold, whatever the limit."""
    made = budget(64 * MIB)
    control = Concurrency(made)
    assert (control.limit, control.range_blocks) == (6, 8)
    drive(control, 0.0, link(10e6, 1.7e9), 20.0)
    assert control.limit == made.connections_max == 48
    assert control.limit * control.range_blocks <= made.unread_max


def test_the_rate_is_what_full_requests_bring() -> None:
    """10 connections, 0.1 s to the first MiB, 0.1 s for the other 3: 200 MiB/s."""
    epoch = Epoch(0.0, 0)
    epoch.moved(10, 0.0)
    for _ in range(10):
        epoch.started += 1
        epoch.started_bytes += 4 * MIB
        epoch.landed(MIB, 0.1, True, 0.1)
    assert not epoch.is_complete(16, 0.2), "nothing is known yet of what follows a first MiB"
    for _ in range(10):
        epoch.landed(3 * MIB, 0.1, False, 0.2)
    epoch.moved(10, 0.2)
    assert epoch.is_complete(16, 0.2)
    assert abs(epoch.rate(4 * MIB) / (200 * MIB) - 1) < 1e-9
    epoch.landed(100 * MIB, 0.3, False, 0.2)
    assert abs(epoch.rate(4 * MIB) / (200 * MIB) - 1) < 1e-9, "it began before the epoch"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "throttle", "idle", "busy"]),
        st.floats(0.01, 30.0),
        st.floats(1e6, 1e9),
        st.one_of(st.none(), st.floats(0, 1e9)),
    ),
    max_size=12,
)


@given(STEPS, st.sampled_from([16 * MIB, 64 * MIB, GIB]), st.sampled_from([None, 1, 3, 64]))
def test_whatever_happens_stays_within_its_bounds(
    steps: list[tuple[str, float, float, float | None]], memory: int, connections: int | None
) -> None:
    """Limit, range, pause and what is in flight never leave their bounds."""
    made = budget(memory, connections)
    control = Concurrency(made)
    now = 0.0
    for kind, seconds, rate, after in steps:
        if kind == "throttle":
            control.throttled(now, after)
            assert now <= control.prefetch_after_s or after is None
        elif kind == "idle":
            now += seconds
        else:
            now = drive(control, now, link(rate, 2e9), min(seconds, 1.0), is_busy=kind == "busy")
        assert 1 <= control.limit <= made.connections_max
        assert control.prefetch_limit >= 1
        assert 1 <= control.range_blocks <= made.range_blocks_max
        assert control.range_blocks == 1 or (
            control.range_blocks * control.limit <= made.unread_max
        )
        assert control.prefetch_after_s <= now + RETRY_AFTER_MAX_S
