"""Plans: whole shards, windows, both directions, and never the same block twice."""

from hypothesis import given
from hypothesis import strategies as st

from fusefs.objects import Extent
from fusefs.policy.extents import block_count
from fusefs.policy.kinds import Kind
from fusefs.policy.plan import SMALL_FILE_BYTES, FilePlan, Priority

MIB = 1 << 20


def nothing(block: int) -> bool:
    """No block is here or on its way."""
    return False


def drain(plan: FilePlan, priority: Priority, limit: int = 10_000) -> list[int]:
    """Everything the plan wants at this priority, if every run is started at once."""
    taken: set[int] = set()
    order: list[int] = []
    for _ in range(limit):
        run = plan.next_run(priority, taken.__contains__)
        if run is None:
            return order
        first, count = run
        assert count >= 1
        blocks = list(range(first, first + count))
        assert not taken.intersection(blocks)
        taken.update(blocks)
        order += blocks
    raise AssertionError("the plan never ends")


@given(st.integers(1, 200 * MIB), st.integers(0, 250), st.integers(1, 16))
def test_a_whole_file_is_wanted_once_from_the_touched_block_on(
    size: int, origin: int, range_blocks: int
) -> None:
    """Every block exactly once: from the origin to the end, then from the start to the origin."""
    plan = FilePlan(size, MIB, range_blocks, Kind.SHARD)
    plan.want_whole(origin)
    blocks = block_count(size, MIB)
    start = min(origin, blocks - 1)
    assert drain(plan, Priority.REST) == [*range(start, blocks), *range(start)]
    assert plan.exhausted()


@given(
    st.integers(1, 300 * MIB),
    st.lists(st.tuples(st.integers(0, 300 * MIB), st.integers(1, MIB)), max_size=40),
    st.sampled_from(Kind),
)
def test_windows_stay_inside_the_file(
    size: int, accesses: list[tuple[int, int]], kind: Kind
) -> None:
    """Whatever is accessed, no run leaves the file, repeats a block, or goes on for ever."""
    plan = FilePlan(size, MIB, 8, kind)
    for offset, length in accesses:
        start = offset % size
        plan.access(Extent(start, min(size, start + length)), nothing)
        wanted = drain(plan, Priority.STREAM)
        assert len(set(wanted)) == len(wanted)
        assert all(0 <= block < plan.blocks for block in wanted)


def test_a_sequential_reader_of_any_file_gets_a_growing_window() -> None:
    """After some MiB in order a window grows ahead of the reader."""
    plan = FilePlan(1024 * MIB, MIB, 8, Kind.OPAQUE)
    lead = []
    for block in range(12):
        plan.access(Extent(block * MIB, (block + 1) * MIB), nothing)
        lead.append(max(drain(plan, Priority.STREAM), default=block) - block)
    assert lead == [0, 0, 0, *range(2, 19, 2)]


def test_a_backward_reader_gets_blocks_below_it() -> None:
    """A stream going down is fetched downwards, nearest first."""
    plan = FilePlan(1024 * MIB, MIB, 8, Kind.OPAQUE)
    for block in (504, 503, 502, 501, 500, 499):
        plan.access(Extent(block * MIB, (block + 1) * MIB), nothing)
    taken = set(range(499, 505))
    run = plan.next_run(Priority.STREAM, taken.__contains__)
    assert run == (498, 1)


def test_ranges_grow_with_their_distance_to_the_reader() -> None:
    """Next to the reader small ranges, far ahead full ones."""
    plan = FilePlan(1024 * MIB, MIB, 8, Kind.OPAQUE)
    for i in range(28):
        plan.access(Extent(i * MIB, (i + 1) * MIB), nothing)
    taken = set(range(28))
    sizes = []
    while run := plan.next_run(Priority.STREAM, taken.__contains__):
        taken.update(range(run[0], run[0] + run[1]))
        sizes.append(run[1])
    assert sizes[0] == 1 and max(sizes) == 8
    assert sizes[:-1] == sorted(sizes[:-1])


def test_small_files_are_fetched_whole_at_the_first_touch() -> None:
    """config.json and its like come with one request's worth of bytes."""
    plan = FilePlan(SMALL_FILE_BYTES, MIB, 8, Kind.OPAQUE)
    plan.access(Extent(0, 4096), nothing)
    assert drain(plan, Priority.REST) == list(range(8))


def test_consumed_blocks_are_not_fetched_again_in_the_same_pass() -> None:
    """What the page cache has got is left alone, until somebody asks for it once more."""
    plan = FilePlan(10 * MIB, MIB, 8, Kind.SHARD)
    plan.mark_consumed(3)
    plan.want_whole(0)
    assert 3 not in drain(plan, Priority.REST)
    plan.begin_pass(3)
    assert drain(plan, Priority.REST)[0] == 3


def test_a_plan_that_was_stopped_wants_nothing() -> None:
    """A closed file is not fetched any further."""
    plan = FilePlan(100 * MIB, MIB, 8, Kind.SHARD)
    plan.want_whole(0)
    plan.access(Extent(0, MIB), nothing)
    plan.stop()
    assert plan.next_run(Priority.STREAM, nothing) is None
    assert plan.next_run(Priority.REST, nothing) is None
