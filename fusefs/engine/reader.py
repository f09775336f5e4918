"""What the kernel asks: `read(file, offset, size)` as one contiguous view of ready bytes.

Answers at once from the arena, or waits on the blocks' events within the deadline. It starts no
task and copies only where two blocks of one READ are not neighbours in the arena.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio

from fusefs.engine.arena import Arena
from fusefs.engine.blocks import Block, File, State
from fusefs.engine.fetcher import Fetcher, Found
from fusefs.engine.pagecache import PageCache
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.slots import Slots
from fusefs.errors import FusefsError, StoreTimeout
from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of
from fusefs.policy.missed import Missed
from fusefs.telemetry.counters import Counters

PINNED_FRACTION = 4
"""At most a quarter of the slots belongs to waiting READs (a READ pins its blocks while it waits
for the last of them): more of them could wait for one another for ever."""


class Admission:
    """READs that must wait for blocks, within `limit` blocks together; one of any size at least.

    The mutable state of Admission is the blocks that those pin who were let in. The others are let
    in as they came: a large one is not overtaken for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._turn = trio.Lock()
        self._pinned = 0
        self._freed = trio.Event()

    @asynccontextmanager
    async def admitted(self, blocks: int) -> AsyncIterator[None]:
        """Inside there is room to pin `blocks` and wait for one more."""
        async with self._turn:
            while self._pinned and self._pinned + blocks > self._limit:
                self._freed = trio.Event()
                await self._freed.wait()
            self._pinned += blocks
        try:
            yield
        finally:
            self._pinned -= blocks
            self._freed.set()


class Reader:
    """Serves READs of any file.

    The mutable state of Reader is what some waited for in vain a moment ago.
    """

    def __init__(
        self,
        arena: Arena,
        slots: Slots,
        fetcher: Fetcher,
        prefetcher: Prefetcher,
        counters: Counters,
        pagecache: PageCache,
        deadline_s: float,
    ) -> None:
        self._arena = arena
        self._slots = slots
        self._fetcher = fetcher
        self._prefetcher = prefetcher
        self._counters = counters
        self._pagecache = pagecache
        self._deadline_s = deadline_s
        self._missed = Missed()
        self._waiting = Admission(arena.budget.slots // PINNED_FRACTION)

    async def read(self, file: File, offset: int, size: int) -> memoryview | bytes:
        """Return exactly min(size, end of file - offset) bytes.

        The view is good until the next await: the caller replies with it at once.
        Raises ObjectChanged, StoreTimeout past the deadline, or what the store said.
        """
        self._counters.reads += 1
        stop = min(offset + size, file.meta.size)
        if offset >= stop:
            return b""
        extent = Extent(offset, stop)
        try:
            reply = await self._view(file, extent)
        except FusefsError:
            self._counters.read_errors += 1
            raise
        self._counters.bytes_read += extent.size
        return reply

    async def _view(self, file: File, extent: Extent) -> memoryview | bytes:
        indices = blocks_of(extent, self._arena.block_size)
        _refuse_wrong(file)
        milestone = self._pagecache.reading(file, extent, indices)
        if milestone is not None and file.suspicion is None:
            self._prefetcher.accessed(file, extent, indices, taken=lambda _: True)
            self._counters.hits += 1
            return milestone
        self._prefetcher.accessed(file, extent, indices)
        blocks = file.blocks
        ready = all(i in blocks and blocks[i].state is State.READY for i in indices)
        if ready and file.suspicion is None:
            self._counters.hits += 1
            return self._answer(extent, indices, [blocks[i] for i in indices])
        if file.changed is not None:
            raise file.changed
        waited_for: list[Hashable] = [(file.meta.id, index) for index in indices]
        wait_s = self._missed.wait_s(waited_for, self._deadline_s, trio.current_time())
        with trio.move_on_after(wait_s):
            async with self._waiting.admitted(max(1, len(indices) - 1)):
                return await self._wait_for(file, extent, indices)
        self._missed.missed(waited_for, trio.current_time())
        raise StoreTimeout(f"{file.meta.id.key}: no bytes within {self._deadline_s:g} s")

    async def _wait_for(self, file: File, extent: Extent, indices: range) -> memoryview:
        pinned, found = self._fetcher.demand(file, indices)
        if found is Found.MISS:
            self._counters.misses += 1
        else:
            self._counters.joins += 1
        try:
            for block in pinned:
                await block.wait_settled()
                if block.error is not None:
                    raise block.error
            if file.suspicion is not None:
                await file.suspicion.over.wait()
            _refuse_wrong(file)
            if all(block.state is State.READY for block in pinned):
                return self._answer(extent, indices, pinned)
        finally:
            self._fetcher.release(pinned)
        return await self._wait_for(file, extent, indices)  # some of them were taken back

    def _answer(self, extent: Extent, indices: range, blocks: list[Block]) -> memoryview:
        """The reply, from READY blocks. Nothing between here and the reply may await."""
        block_size = self._arena.block_size
        for block in blocks:
            whole = block.extent
            served = min(extent.stop, whole.stop) - max(extent.start, whole.start)
            self._slots.touched(block, served)
        first = extent.start - indices.start * block_size
        if all(b.slot == blocks[0].slot + i for i, b in enumerate(blocks)):
            return self._arena.view(blocks[0].slot, first, extent.size)
        pieces = []
        for block in blocks:
            whole = block.extent
            start = max(extent.start, whole.start) - whole.start
            stop = min(extent.stop, whole.stop) - whole.start
            pieces.append(self._arena.view(block.slot, start, stop - start))
        return self._arena.join(pieces)


def _refuse_wrong(file: File) -> None:
    if file.is_wrong and file.changed is not None:
        raise file.changed
