"""What a hint wants: extents, blocks, order; against a plain set of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.hinted import READY, UNWANTED, WANTED, Wanted, merged

SIZE, BLOCK = 200, 16
EXTENTS = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: (min(p), max(p))),
    max_size=8,
)


def bytes_of(extents: list[tuple[int, int]]) -> set[int]:
    return {byte for start, stop in extents for byte in range(start, stop)}


def drain(wanted: Wanted, limit: int = 4) -> list[int]:
    """All blocks in the order in which they are fetched."""
    got: set[int] = set()
    order: list[int] = []
    while (run := wanted.next_run(limit, got.__contains__)) is not None:
        first, count = run
        assert 0 < count <= limit
        order += range(first, first + count)
        got.update(order)
    return order


@given(EXTENTS, EXTENTS, st.booleans(), st.data())
def test_ready_bytes_are_the_wanted_bytes_of_ready_blocks(
    one: list[tuple[int, int]], two: list[tuple[int, int]], in_order: bool, data: st.DataObject
) -> None:
    """Whatever is added and lands, the counts are those of a set of bytes."""
    wanted = Wanted(SIZE, BLOCK)
    wanted.add(one, in_order)
    landed = data.draw(st.sets(st.integers(0, SIZE // BLOCK)))
    told = bytes_of([part for block in landed for part in wanted.mark_ready(block)])
    here = {byte for byte in range(SIZE) if byte // BLOCK in landed}
    assert told == bytes_of(one) & here
    assert wanted.ready_bytes == len(told)
    wanted.add(two, in_order)
    for block in landed:
        wanted.mark_ready(block)
    both = bytes_of(one) | bytes_of(two)
    assert wanted.total_bytes == len(both)
    assert wanted.ready_bytes == len(both & here)
    assert bytes_of(wanted.extents) == both
    assert wanted.extents == merged(wanted.extents)
    for index, mark in enumerate(wanted.marks):
        of_block = both & set(range(index * BLOCK, (index + 1) * BLOCK))
        assert mark in ((READY, WANTED) if of_block else (UNWANTED,))


@given(EXTENTS, st.booleans())
def test_every_wanted_block_is_fetched_once(extents: list[tuple[int, int]], in_order: bool) -> None:
    """Neither a block twice, nor one in which nothing is wanted; by offset if so asked."""
    wanted = Wanted(SIZE, BLOCK)
    wanted.add(extents, in_order)
    blocks = drain(wanted)
    assert sorted(blocks) == sorted({byte // BLOCK for byte in bytes_of(extents)})
    assert wanted.is_exhausted()
    if not in_order:
        assert blocks == sorted(blocks)


def test_listed_order_is_kept() -> None:
    """The first extent listed is fetched first, wherever it lies."""
    wanted = Wanted(SIZE, BLOCK)
    wanted.add([(100, 110), (0, 20), (150, 151)], in_order=True)
    assert drain(wanted) == [6, 0, 1, 9]


def test_saying_the_same_again_and_again_takes_no_memory() -> None:
    """However often and in however many pieces: the order stays short, and all of it is fetched."""
    wanted = Wanted(SIZE, BLOCK)
    for _ in range(100):
        for byte in range(SIZE - 1, -1, -1):
            wanted.add([(byte, byte + 1)], in_order=True)
    assert len(wanted._order) <= 64
    assert sorted(drain(wanted)) == list(range(13))


def test_what_is_lost_is_fetched_again_from_there_on() -> None:
    """A block that was ready and is not there any more is wanted again, and so are those behind."""
    wanted = Wanted(SIZE, BLOCK)
    wanted.add([(0, SIZE)], in_order=True)
    for block in range(8):
        wanted.mark_ready(block)
    wanted.want_again(3, absent=lambda index: index != 5)
    assert wanted.ready_bytes == 4 * BLOCK
    assert drain(wanted) == [3, 4, *range(6, 13)]


def test_an_extent_beyond_the_end_is_refused_whole() -> None:
    """Nothing is wanted then."""
    wanted = Wanted(SIZE, BLOCK)
    with pytest.raises(ValueError, match="beyond the end"):
        wanted.add([(0, 10), (190, SIZE + 1)], in_order=True)
    assert wanted.total_bytes == 0
    assert drain(wanted) == []


@given(EXTENTS, st.integers(0, SIZE - 1), st.integers(1, 40), st.integers(0, 30))
def test_near_is_inside_or_little_behind(
    extents: list[tuple[int, int]], low: int, size: int, slack: int
) -> None:
    """A READ is near a wish if it touches it, or what lies `slack` behind it."""
    wanted = Wanted(SIZE, BLOCK)
    wanted.add(extents, in_order=False)
    high = min(low + size, SIZE)
    stretched = [(start, stop + slack) for start, stop in extents if start < stop]
    expected = any(start < high and low < stop for start, stop in stretched)
    assert wanted.near(low, high, slack) == expected
