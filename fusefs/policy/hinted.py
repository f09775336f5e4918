"""What a hint wants of one file: extents, the blocks that hold them, and which of those are there.

Pure bookkeeping. The one idea: what was asked for is counted in bytes, what is fetched in blocks. A
block that holds parts of several wanted extents is wanted once, and where it lands all of them are
ready.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable

from fusefs.policy.extents import block_count

UNWANTED, WANTED, READY = range(3)
"""A block's mark: no extent lies in it · to be fetched · was there since it was asked for."""

ORDER_MIN = 64
"""An order is kept of so many runs, or of as many as the file has blocks. A wish that lists more
says some blocks again and again, and is fetched by offset."""

Pair = tuple[int, int]
"""`[start, stop)`, of bytes or of blocks."""


def merged(extents: Iterable[Pair]) -> list[Pair]:
    """The same bytes as disjoint extents that do not touch, in order; empty ones are left out."""
    result: list[Pair] = []
    for start, stop in sorted(extents):
        if start >= stop:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


class Wanted:
    """The wish for one file.

    The mutable state of Wanted is the extents, their blocks' marks, and how far `next_run` is.
    INVARIANT: `ready_bytes` is the part of `extents` that lies in READY blocks; every block that
    holds a part of an extent is WANTED or READY, and no other.
    """

    def __init__(self, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self.extents: list[Pair] = []
        self._starts: list[int] = []
        self.marks = bytearray(block_count(size, block_size))
        self.total_bytes = 0
        self.ready_bytes = 0
        self._order: list[Pair] = []
        self._turn = 0
        self._block = 0

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the file is wanted."""
        return self.total_bytes == self.size

    def add(self, extents: Iterable[Pair], in_order: bool) -> list[Pair]:
        """Want these, too; if `in_order`, as they are listed, else by offset.

        Returns the runs of blocks they lie in. Blocks of them that were READY are WANTED again:
        that the new extents are there must be said. Raises ValueError if one ends beyond the file.
        """
        listed = [(start, stop) for start, stop in extents if start < stop]
        if any(stop > self.size for _, stop in listed):
            raise ValueError("an extent ends beyond the end of the file")
        runs = self._runs(listed if in_order else merged(listed))
        for first, end in runs:
            self._unready(first, end)
            self.marks[first:end] = bytes([WANTED]) * (end - first)
        self.extents = merged([*self.extents, *listed])
        self._starts = [start for start, _ in self.extents]
        self.total_bytes = sum(stop - start for start, stop in self.extents)
        self._order += runs
        if len(self._order) > max(ORDER_MIN, len(self.marks)):
            self._order = self._runs(self.extents)
        self.rewind()
        return runs

    def _runs(self, extents: Iterable[Pair]) -> list[Pair]:
        """The runs of blocks that extents lie in, one after the other; neighbours as one."""
        runs: list[Pair] = []
        for start, stop in extents:
            first, end = start // self.block_size, block_count(stop, self.block_size)
            if runs and runs[-1][0] <= first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], end))
            else:
                runs.append((first, end))
        return runs

    def _unready(self, first: int, stop: int) -> None:
        block = self.marks.find(READY, first, stop)
        while block >= 0:
            self.ready_bytes -= sum(end - start for start, end in self.parts(block))
            self.marks[block] = WANTED
            block = self.marks.find(READY, block, stop)

    def parts(self, block: int) -> list[Pair]:
        """The wanted extents inside a block, cut at its edges."""
        low, high = block * self.block_size, min((block + 1) * self.block_size, self.size)
        return self.within(low, high)

    def within(self, low: int, high: int) -> list[Pair]:
        """The wanted extents inside `[low, high)`, cut at its edges."""
        place = max(0, bisect_right(self._starts, low) - 1)
        found = []
        while place < len(self.extents):
            start, stop = self.extents[place]
            if start >= high:
                break
            if stop > low:
                found.append((max(start, low), min(stop, high)))
            place += 1
        return found

    def near(self, low: int, high: int, slack: int) -> bool:
        """Whether `[low, high)` is wanted, or not more than `slack` bytes past what is."""
        place = bisect_left(self._starts, high) - 1
        return place >= 0 and low < self.extents[place][1] + slack

    def mark_ready(self, block: int) -> list[Pair]:
        """The block is there: the extents this makes ready; none if it was, or is not wanted."""
        if block >= len(self.marks) or self.marks[block] != WANTED:
            return []
        self.marks[block] = READY
        parts = self.parts(block)
        self.ready_bytes += sum(stop - start for start, stop in parts)
        return parts

    def ready_extents(self) -> list[Pair]:
        """The wanted bytes that lie in READY blocks."""
        if self.ready_bytes == self.total_bytes:
            return list(self.extents)
        found: list[Pair] = []
        block = self.marks.find(READY)
        while block >= 0:
            found += self.parts(block)
            block = self.marks.find(READY, block + 1)
        return merged(found)

    def want_again(self, block: int, absent: Callable[[int], bool]) -> None:
        """Fetch from `block` on what is READY by its mark, but is not there any more."""
        while (block := self.marks.find(READY, block)) >= 0:
            if absent(block):
                self._unready(block, block + 1)
            block += 1
        self.rewind()

    def rewind(self) -> None:
        """Look at all blocks again: one that was on its way may be gone."""
        self._turn = self._block = 0

    def is_exhausted(self) -> bool:
        """Whether `next_run` came to the end; what it answered may still be on its way."""
        return self._turn >= len(self._order)

    def next_run(self, limit: int, taken: Callable[[int], bool]) -> Pair | None:
        """The next run to fetch: (first block, count <= limit), or None.

        Takes no note of what it answers: a run that was started is `taken` when asked again.
        """
        while self._turn < len(self._order):
            first, stop = self._order[self._turn]
            run = self.run_in(max(first, self._block), stop, limit, taken)
            if run is not None:
                self._block = run[0]
                return run
            self._turn += 1
            self._block = 0
        return None

    def run_in(
        self, first: int, stop: int, limit: int, taken: Callable[[int], bool]
    ) -> Pair | None:
        """The first run of blocks in `[first, stop)` that are WANTED and not `taken`."""
        marks = self.marks
        block = marks.find(WANTED, first, stop)
        while block >= 0 and taken(block):
            block = marks.find(WANTED, block + 1, stop)
        if block < 0:
            return None
        count = 1
        while count < limit and block + count < stop:
            if marks[block + count] != WANTED or taken(block + count):
                break
            count += 1
        return block, count
