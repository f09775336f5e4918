"""What to fetch next of one file, and how urgently.

A plan knows the file's size, of which kind it is, what was accessed and what was
already consumed; it answers "which run of blocks next, at this priority?". It is asked late, when a
connection is free, so there is no queue of prefetches to reorder or cancel; and it takes no note of
what it answered: a run that was started is `taken` when asked again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from fusefs.objects import Extent
from fusefs.policy.consumed import Consumed
from fusefs.policy.extents import block_count, blocks_of
from fusefs.policy.kinds import (
    ARCHIVE_TAIL_BYTES,
    GGUF_HEAD_BYTES_MAX,
    GGUF_HEAD_WINDOW_BYTES,
    Kind,
)
from fusefs.policy.streams import WINDOW_PER_READ, Stream, StreamTracker

MIB = 1 << 20

STREAM_WINDOW_MAX_BYTES = 256 * MIB
"""Enough to fill 32 connections with 8 MiB ranges: what a 1.7 GB/s link holds in flight."""

TENSOR_WINDOW_BYTES = 8 * MIB
"""Window of a new stream inside a shard: whoever touches a tensor's first page reads on."""

SMALL_FILE_BYTES = 8 * MIB
"""Files up to one range request are fetched whole at the first touch (config, tokenizer, index)."""

HEAD_GAP_BYTES = 1 * MIB
"""Metadata read in order may leave out so much: a READ of the kernel's comes before its turn."""

RAMP = 4
"""A range is at most 1/RAMP of its distance to the reader: near it small ranges on many connections
bring the first bytes soon, far ahead full ranges cost fewer requests."""


class Priority(IntEnum):
    """The order in which wanted blocks are fetched, most urgent first."""

    DEMAND = 0
    HINTED = 1
    HEAD = 2
    STREAM = 3
    COMPANIONS = 4
    REST = 5
    NEXT_SHARD = 6
    WARM = 7


class FilePlan:
    """The plan for one file.

    The mutable state of FilePlan is the streams, what was consumed, how often the file was begun
    again, where the rest of it is being fetched, and which of that was given up.
    INVARIANT: a run never leaves `[0, blocks)`, never holds a block that `taken` says is there, and
    never one that is thought to be in the page cache.
    """

    def __init__(self, size: int, block_size: int, range_blocks: int, kind: Kind) -> None:
        self.size = size
        self.block_size = block_size
        self.range_blocks = range_blocks
        self.kind = kind
        self.blocks = block_count(size, block_size)
        self.streams = StreamTracker(
            GGUF_HEAD_WINDOW_BYTES if kind is Kind.GGUF else STREAM_WINDOW_MAX_BYTES,
            TENSOR_WINDOW_BYTES if kind is Kind.SHARD else 0,
            WINDOW_PER_READ if kind is not Kind.SHARD else None,
        )
        self.edge = self.blocks
        self._tail_wanted = False
        self._tail_left = 0
        self._head_read = 0
        self.consumed = Consumed(self.blocks)
        self.passes = 0
        self.whole = False
        self._rest = 0
        self._rest_left = 0
        self._again: deque[tuple[int, int]] = deque()

    def access(self, extent: Extent, taken: Callable[[int], bool]) -> None:
        """A READ for `extent` came in."""
        stream = self.streams.access(extent)
        if not self.whole and self.size <= SMALL_FILE_BYTES:
            self.want_whole(0)
        news = self.consumed.read(blocks_of(extent, self.block_size), taken)
        if not news:
            return
        stream.reread += news
        if self.consumed.is_pass():
            self.begin_pass(extent.start // self.block_size)
        else:
            self._guess(stream)

    def glance(self, extent: Extent, taken: Callable[[int], bool]) -> None:
        """A READ for `extent` came in that leads nowhere."""
        self.consumed.read(blocks_of(extent, self.block_size), taken)

    def become_opaque(self) -> None:
        """The header turned out not to be one: plan like for any other file."""
        self.kind = Kind.OPAQUE
        self.edge = self.blocks
        self.streams.window_max_bytes = STREAM_WINDOW_MAX_BYTES
        self.streams.window_new_bytes = 0
        self.streams.window_per_read = WINDOW_PER_READ

    def is_data(self, extent: Extent, head_bytes: int) -> bool:
        """Whether a READ of an archive or a GGUF file asks for data, or for what tells of it."""
        if self.kind is Kind.ARCHIVE:
            return head_bytes <= extent.start < self.tail_start
        if extent.start > self._head_read + HEAD_GAP_BYTES or extent.stop > GGUF_HEAD_BYTES_MAX:
            return True
        self._head_read = max(self._head_read, extent.stop)
        return False

    @property
    def tail_start(self) -> int:
        """Where the blocks begin that hold the directory at the end of an archive."""
        return max(0, self.size - ARCHIVE_TAIL_BYTES) // self.block_size * self.block_size

    def want_tail(self) -> None:
        """Fetch the tail of an archive, its end first: what a loader reads next is there."""
        self._tail_wanted = True
        self._tail_left = self.blocks - self.tail_start // self.block_size

    def want_whole(self, origin: int) -> None:
        """Fetch the whole file, from block `origin` to the end, then from the start to there."""
        self.whole = True
        self.edge = self.blocks
        self.streams.window_max_bytes = STREAM_WINDOW_MAX_BYTES
        self._rest = min(origin, max(0, self.blocks - 1))
        self._rest_left = self.blocks
        self._again.clear()  # the whole holds it

    def want_again(self, first: int, count: int) -> None:
        """These blocks were given up, and whoever wants them has gone past: come back to them."""
        if self.whole and (first, count) not in self._again:
            self._again.append((first, count))
        if self._tail_wanted:
            beyond = first + count - self.tail_start // self.block_size
            self._tail_left = max(self._tail_left, beyond)
        for stream in self.streams.streams:
            stream.frontier = None

    def stop(self) -> None:
        """Nobody has the file open: want nothing of it."""
        self._tail_wanted = False
        self._tail_left = 0
        self.streams.streams.clear()
        self.whole = False
        self._again.clear()
        self.consumed.progress = 0

    def mark_consumed(self, block: int) -> None:
        """The block's last byte has been read: it is the page cache's, and not fetched ahead."""
        if block not in self.consumed:
            self.consumed.progress += 1
            self.consumed.mark(block)

    def mark_pushed(self, block: int) -> None:
        """The block is the page cache's; whether anybody reads it there, a milestone will tell."""
        self.consumed.mark(block)

    def passed(self, blocks: int) -> None:
        """A reader has come to so many pushed blocks."""
        self.consumed.progress += blocks

    def begin_pass(self, block: int) -> None:
        """The page cache has let go of the file: fetch it once more, from `block` on."""
        self.consumed.begin_pass()
        self.passes += 1
        for stream in self.streams.streams:
            stream.frontier = None
        if self.whole:
            self.want_whole(block)

    def next_run(self, priority: Priority, taken: Callable[[int], bool]) -> tuple[int, int] | None:
        """The next run to fetch at `priority` (HEAD, STREAM or REST): (first, count), or None."""
        if not self.blocks:
            return None
        if priority is Priority.HEAD:
            return self._tail_run(taken)
        if priority is Priority.STREAM:
            for stream in reversed(self.streams.streams):
                run = self._stream_run(stream, taken)
                if run is not None:
                    return run
            return None
        return self._rest_run(taken) if self.whole else None

    def exhausted(self) -> bool:
        """Whether REST has been all the way round."""
        return not self.whole or (self._rest_left <= 0 and not self._again)

    def _absent(self, block: int, taken: Callable[[int], bool]) -> bool:
        return block not in self.consumed and not taken(block)

    def _guess(self, stream: Stream) -> None:
        """Blocks ahead of a reader of consumed ones are gone too, as many as it came for."""
        reach = min(stream.reread, stream.window_bytes // self.block_size)
        if stream.direction > 0:
            here = (stream.stop - 1) // self.block_size
            ahead = range(here + 1, min(here + 1 + reach, self.blocks))
        elif stream.direction < 0:
            here = stream.start // self.block_size
            ahead = range(here - 1, max(here - 1 - reach, -1), -1)
        else:
            return  # one access leads nowhere
        if self.consumed.guess(ahead):
            stream.frontier = None

    def _tail_run(self, taken: Callable[[int], bool]) -> tuple[int, int] | None:
        first = self.tail_start // self.block_size
        while self._tail_left and not self._absent(first + self._tail_left - 1, taken):
            self._tail_left -= 1
        stop, count = first + self._tail_left, 0
        limit = min(self.range_blocks, self._tail_left)
        while count < limit and self._absent(stop - count - 1, taken):
            count += 1
        return (stop - count, count) if count else None

    def _stream_run(self, stream: Stream, taken: Callable[[int], bool]) -> tuple[int, int] | None:
        if stream.window_bytes <= 0:
            return None
        if stream.direction < 0:
            return self._backward_run(stream, taken)
        here = (stream.stop - 1) // self.block_size
        edge = min(block_count(stream.stop + stream.window_bytes, self.block_size), self.edge)
        block = max(here, stream.frontier or 0)
        while block < edge and not self._absent(block, taken):
            block += 1
        limit = self._ramp(block - here)
        count = 0
        while count < limit and block + count < edge and self._absent(block + count, taken):
            count += 1
        stream.frontier = block  # not past the run: what is started is taken when asked again
        return (block, count) if count else None

    def _backward_run(self, stream: Stream, taken: Callable[[int], bool]) -> tuple[int, int] | None:
        here = stream.start // self.block_size
        edge = max(0, (stream.start - stream.window_bytes) // self.block_size)
        block = here if stream.frontier is None else min(here, stream.frontier)
        while block >= edge and not self._absent(block, taken):
            block -= 1
        limit = self._ramp(here - block)
        count = 0
        while count < limit and block - count >= edge and self._absent(block - count, taken):
            count += 1
        stream.frontier = block
        return (block - count + 1, count) if count else None

    def _rest_run(self, taken: Callable[[int], bool]) -> tuple[int, int] | None:
        while self._again:
            run = self._given_up(*self._again[0], taken)
            if run is not None:
                return run
            self._again.popleft()
        while self._rest_left > 0 and not self._absent(self._rest, taken):
            self._rest_left -= 1
            self._rest = (self._rest + 1) % self.blocks
        if self._rest_left <= 0:
            return None
        first, count = self._rest, 0
        limit = min(self.range_blocks, self._rest_left, self.blocks - first)
        while count < limit and self._absent(first + count, taken):
            count += 1
        return first, count

    def _given_up(
        self, first: int, count: int, taken: Callable[[int], bool]
    ) -> tuple[int, int] | None:
        """The first run of blocks among these that are still absent."""
        stop = first + count
        while first < stop and not self._absent(first, taken):
            first += 1
        count = 0
        while first + count < stop and count < self.range_blocks:
            if not self._absent(first + count, taken):
                break
            count += 1
        return (first, count) if count else None

    def _ramp(self, distance: int) -> int:
        return max(1, min(self.range_blocks, distance // RAMP))
