"""Blocks that are read again: what is taken for gone never exceeds what was seen to be gone."""

from hypothesis import given
from hypothesis import strategies as st

from fusefs.objects import Extent
from fusefs.policy.consumed import PASS_FRACTION, Consumed
from fusefs.policy.kinds import Kind
from fusefs.policy.plan import FilePlan, Priority
from tests.policy.test_plan import MIB, drain, nothing

BLOCKS = 1000


def consumed_plan(blocks: int = BLOCKS) -> FilePlan:
    """A shard that was read to its end and closed."""
    plan = FilePlan(blocks * MIB, MIB, 8, Kind.SHARD)
    for block in range(blocks):
        plan.mark_consumed(block)
    plan.stop()
    return plan


def read(plan: FilePlan, block: int) -> list[int]:
    """Read one block that is gone, and fetch all that is wanted then."""
    plan.access(Extent(block * MIB, (block + 1) * MIB), nothing)
    taken = {block}
    plan.mark_consumed(block)
    wanted: list[int] = []
    for priority in (Priority.STREAM, Priority.REST):
        while run := plan.next_run(priority, taken.__contains__):
            wanted += range(run[0], run[0] + run[1])
            taken.update(wanted)
    return wanted


def test_one_block_read_again_brings_that_block() -> None:
    """The kernel dropped one page of a shard: the shard is not downloaded for it."""
    assert read(consumed_plan(), 500) == []


def test_the_lead_of_a_second_pass_doubles() -> None:
    """A reader of blocks that are gone has as many ahead of it as it came for."""
    plan = consumed_plan()
    ahead = [len(read(plan, block)) for block in range(64)]
    assert ahead[0] == 0
    assert all(count >= block for block, count in enumerate(ahead))


def test_a_backward_second_pass_is_led_downwards() -> None:
    """Guesses go where the reader goes."""
    plan = consumed_plan()
    read(plan, 900)
    assert read(plan, 899) == [898, 897]


@given(st.lists(st.integers(0, BLOCKS - 1), max_size=200, unique=True))
def test_guesses_in_vain_never_outnumber_what_was_gone(order: list[int]) -> None:
    """Whatever is read again in whatever order, short of a quarter of the file."""
    plan = consumed_plan()
    wanted: set[int] = set()
    for block in order:
        wanted.update(read(plan, block))
    assert len(wanted - set(order)) <= len(order)


def test_past_a_quarter_the_rest_is_wanted_again() -> None:
    """A second pass with nothing cached becomes a whole one, and repeats nothing."""
    plan = consumed_plan()
    plan.want_whole(0)
    edge = BLOCKS // PASS_FRACTION
    for block in range(edge):
        plan.access(Extent(block * MIB, (block + 1) * MIB), nothing)
        plan.mark_consumed(block)
    assert plan.passes == 0
    plan.access(Extent(edge * MIB, (edge + 1) * MIB), nothing)
    assert plan.passes == 1
    assert drain(plan, Priority.REST) == list(range(edge, BLOCKS))


def test_a_third_pass_goes_like_the_second() -> None:
    """What was read again counts as read once when the next pass begins."""
    consumed = Consumed(8)
    for _ in range(3):
        for block in range(8):
            consumed.read([block], nothing)
            if consumed.is_pass():
                consumed.begin_pass()
            consumed.mark(block)
        assert all(block in consumed for block in range(8))


def test_blocks_still_here_are_no_news() -> None:
    """A second rank that reads through the arena tells nothing about the page cache."""
    consumed = Consumed(8)
    consumed.mark(3)
    assert consumed.read([3], lambda block: True) == 0
    assert 3 in consumed
