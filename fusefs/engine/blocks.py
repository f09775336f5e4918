"""Files as the engine sees them: one immutable object version, its plan, and its blocks.

Pure bookkeeping on the trio thread: no I/O, no decisions about what to fetch.
"""

from __future__ import annotations

from enum import Enum

import trio

from fusefs.errors import FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.policy.extents import extent_of
from fusefs.policy.plan import FilePlan
from fusefs.policy.slots import Rank

PARTLY_READ_IDLE_S = 2.0
"""A reader that takes a block in 128 KiB pieces comes back for the next one far sooner than this.
"""


class State(Enum):
    """Life of a block: queued → fetching → ready; gone when it failed or its slot was taken."""

    QUEUED = "queued"
    FETCHING = "fetching"
    READY = "ready"
    GONE = "gone"


class Block:
    """One aligned piece of a file, on its way or in the arena.

    The mutable state of Block is all of it. INVARIANT: READY is assigned once, after the last byte
    landed; `slot` is valid in FETCHING and READY; a READY block with waiters keeps its slot. A
    spare (see `engine.hedges`) is in no file and only ever FETCHING.
    """

    __slots__ = (
        "_arrived", "error", "file", "index", "served", "slot", "spare", "state", "touched_s",
        "unread", "waiters",
    )  # fmt: skip

    def __init__(self, file: File, index: int, spare: bool = False) -> None:
        self.file = file
        self.index = index
        self.spare = spare
        self.state = State.QUEUED
        self.slot = -1
        self.waiters = 0
        self.served = 0
        self.touched_s = 0.0
        self.unread = False
        self.error: FusefsError | None = None
        self._arrived: trio.Event | None = None

    @property
    def extent(self) -> Extent:
        """The bytes of the file that this block holds."""
        plan = self.file.plan
        return extent_of(self.index, 1, plan.block_size, plan.size)

    async def wait_settled(self) -> None:
        """Return once the block is READY, or GONE with `error` set."""
        if self.state in (State.QUEUED, State.FETCHING):
            if self._arrived is None:
                self._arrived = trio.Event()
            await self._arrived.wait()

    def settle(self, state: State, error: FusefsError | None = None) -> None:
        """Enter READY or GONE and wake whoever waits."""
        self.state = state
        self.error = error
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def rank(self, now_s: float) -> Rank:
        """What taking this block's slot costs."""
        if self.state is not State.READY or self.waiters:
            return Rank.PINNED
        if self.served >= self.extent.size:
            return Rank.IDLE if self.file.direct_opens else Rank.FREE
        if self.unread:
            return Rank.UNREAD
        return Rank.IDLE if now_s - self.touched_s > PARTLY_READ_IDLE_S else Rank.ACTIVE


class File:
    """One object version the engine has dealt with.

    `direct_opens` counts handles that bypass the page cache: with them a block that was read once
    may well be read again by the next rank, without them the kernel has it.

    The mutable state of File is its blocks, opens and what is known of its header.
    INVARIANT: every block in `blocks` is QUEUED, FETCHING or READY.
    """

    __slots__ = (
        "blocks", "changed", "data_start", "direct_opens", "inode", "inspected", "meta", "opens",
        "plan", "started", "touched_block",
    )  # fmt: skip

    def __init__(self, meta: ObjectMeta, plan: FilePlan) -> None:
        self.meta = meta
        self.plan = plan
        self.inode = 0
        self.blocks: dict[int, Block] = {}
        self.opens = 0
        self.direct_opens = 0
        self.changed: FusefsError | None = None
        self.inspected = False
        self.started = False
        self.data_start: int | None = None
        self.touched_block: int | None = None

    def has(self, index: int) -> bool:
        """Whether this block is wanted, on its way or there."""
        return index in self.blocks


class FileTable:
    """The files the engine knows, by object version.

    The mutable state of FileTable is the table. INVARIANT: one File per ObjectId; a file without
    opens, blocks or plans under way may be dropped at any time and comes back the same.
    """

    def __init__(self, block_size: int, range_blocks: int) -> None:
        self.block_size = block_size
        self.range_blocks = range_blocks
        self._files: dict[tuple[str, str], File] = {}

    def get(self, meta: ObjectMeta) -> File:
        """The file of this version, made on first use."""
        key = (meta.id.key, meta.id.etag)
        file = self._files.get(key)
        if file is None:
            is_shard = meta.id.key.endswith(".safetensors")
            plan = FilePlan(meta.size, self.block_size, self.range_blocks, is_shard)
            file = self._files[key] = File(meta, plan)
        return file

    def opened(self, meta: ObjectMeta) -> File:
        """The file, one open more."""
        file = self.get(meta)
        file.opens += 1
        return file

    def closed(self, file: File) -> None:
        """One open less; the file is forgotten once nothing of it is left."""
        file.opens -= 1
        self.drop_if_unused(file)

    def drop_if_unused(self, file: File) -> None:
        """Forget a file that is neither open nor has blocks."""
        if file.opens <= 0 and not file.blocks:
            self._files.pop((file.meta.id.key, file.meta.id.etag), None)

    def __len__(self) -> int:
        return len(self._files)
