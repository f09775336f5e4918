"""What lies in the page cache because we pushed it, and how far its readers have come.

Pages that were pushed are read without our hearing of it. So the first page of every segment is
left out, and kept here: the READ it causes, a milestone, says that a reader has arrived there.
Bytes of segments that no reader has come to are "ahead".
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 4096
"""The kernel's page, and what a milestone leaves out."""

SEGMENT_BYTES = 64 << 20
"""From one milestone to the next: a READ each 64 MiB costs nothing, and the lead into the page
cache is counted in gigabytes."""


@dataclass(slots=True)
class PushedTotals:
    """Sums over all files of a mount: bytes ahead of readers, and pages kept for milestones."""

    ahead_bytes: int = 0
    milestones: int = 0


class PushedPages:
    """What was pushed of one file.

    The mutable state of PushedPages is which blocks are in the page cache, the bytes pushed of
    segments nobody has come to yet, and the pages left out. INVARIANT: `totals` contains exactly
    the sums of `_ahead` and `_milestones`.
    """

    def __init__(self, totals: PushedTotals, blocks: int, block_size: int) -> None:
        self._totals = totals
        self._block_size = block_size
        self._segment_blocks = segment_blocks(block_size)
        self._done = bytearray(blocks)
        self._ahead: dict[int, int] = {}
        self._milestones: dict[int, bytes] = {}

    def add(self, first: int, count: int, size: int, milestone: bytes | None) -> None:
        """Blocks `[first, first + count)` of one segment were pushed, `size` bytes in all.

        `milestone` is the page left out, if `first` has one.
        """
        self._done[first : first + count] = b"\1" * count
        segment = first // self._segment_blocks
        self._ahead[segment] = self._ahead.get(segment, 0) + size
        self._totals.ahead_bytes += size
        if milestone is not None:
            self._totals.milestones += first not in self._milestones
            self._milestones[first] = milestone

    def arrived(self, block: int) -> int:
        """A reader has come to this segment: how many bytes of it were pushed, told once."""
        passed = self._ahead.pop(block // self._segment_blocks, 0)
        self._totals.ahead_bytes -= passed
        return passed

    def milestone(self, start: int, stop: int) -> bytes | None:
        """The bytes `[start, stop)` of the file, if they lie in one page that was left out.

        Answered once: then the page is the kernel's.
        """
        block = start // self._block_size
        page = self._milestones.get(block)
        begin = block * self._block_size
        if page is None or stop > begin + len(page):
            return None
        del self._milestones[block]
        self._totals.milestones -= 1
        return page[start - begin : stop - begin]

    def lost(self, block: int) -> bool:
        """Whether a block asked for was pushed, so that the kernel dropped it. Told once."""
        was, self._done[block] = self._done[block], 0
        return bool(was)

    def release(self) -> None:
        """The file is forgotten: take it out of the totals."""
        self._totals.ahead_bytes -= sum(self._ahead.values())
        self._totals.milestones -= len(self._milestones)
        self._ahead.clear()
        self._milestones.clear()


def segment_blocks(block_size: int) -> int:
    """How many blocks a segment has."""
    return max(1, SEGMENT_BYTES // block_size)
