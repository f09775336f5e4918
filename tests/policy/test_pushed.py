"""Bookkeeping of pushed pages: milestones, what is ahead, what was lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.pushed import PAGE_BYTES, SEGMENT_BYTES, PushedPages, PushedTotals

MIB = 1 << 20
PER_SEGMENT = SEGMENT_BYTES // MIB


def test_a_milestone_answers_for_its_page_alone() -> None:
    """Only bytes within the page that was left out come from it; one byte more does not."""
    totals = PushedTotals()
    pages = PushedPages(totals, 2 * PER_SEGMENT, MIB)
    page = bytes(range(256)) * 16
    pages.add(PER_SEGMENT, 2, 2 * MIB, page)
    start = SEGMENT_BYTES
    assert pages.milestone(start, start + PAGE_BYTES + 1) is None
    assert pages.milestone(0, PAGE_BYTES) is None
    assert totals.milestones == 1
    assert pages.milestone(start + 10, start + 20) == page[10:20]
    assert pages.milestone(start + 10, start + 20) is None
    assert totals.milestones == 0


def test_arriving_in_a_segment_takes_its_bytes_from_what_is_ahead() -> None:
    """A reader anywhere in a segment has come to all that was pushed of it, once."""
    totals = PushedTotals()
    pages = PushedPages(totals, 3 * PER_SEGMENT, MIB)
    pages.add(0, 4, 4 * MIB, None)
    pages.add(PER_SEGMENT, 8, 8 * MIB, b"x" * PAGE_BYTES)
    assert pages.arrived(PER_SEGMENT - 1) == 4 * MIB
    assert totals.ahead_bytes == 8 * MIB
    assert pages.arrived(PER_SEGMENT - 1) == 0
    assert totals.ahead_bytes == 8 * MIB
    assert pages.arrived(PER_SEGMENT + 5) == 8 * MIB
    assert totals.ahead_bytes == 0


def test_a_lost_block_is_told_once() -> None:
    """A pushed block that is asked for is lost; asked for again it is like any other."""
    pages = PushedPages(PushedTotals(), 4, MIB)
    pages.add(1, 2, 2 * MIB, None)
    assert [pages.lost(block) for block in (0, 1, 1, 2, 3)] == [False, True, False, True, False]


@given(
    st.lists(st.tuples(st.integers(0, 3 * PER_SEGMENT - 1), st.booleans(), st.integers(0, 2))),
)
def test_totals_are_zero_once_all_is_released(steps: list[tuple[int, bool, int]]) -> None:
    """Whatever was pushed and read: nothing is left of it after `release`, nor is it negative."""
    totals = PushedTotals()
    files = [PushedPages(totals, 3 * PER_SEGMENT, MIB) for _ in range(3)]
    for block, push, number in steps:
        if push:
            milestone = b"m" * PAGE_BYTES if block % PER_SEGMENT == 0 else None
            files[number].add(block, 1, MIB, milestone)
        else:
            files[number].arrived(block)
        assert totals.ahead_bytes >= 0
    for pages in files:
        pages.release()
    assert (totals.ahead_bytes, totals.milestones) == (0, 0)
