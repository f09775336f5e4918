"""Files as the engine sees them: one immutable object version, its plan, and its blocks.

Pure bookkeeping on the trio thread: no I/O, no decisions about what to fetch.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Protocol

import trio

from fusefs.errors import ChecksumMismatch, FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.policy.extents import extent_of
from fusefs.policy.kinds import kind_of
from fusefs.policy.ledger import Ledger
from fusefs.policy.plan import FilePlan
from fusefs.policy.pushed import PushedPages
from fusefs.policy.setback import Setback
from fusefs.policy.slots import Rank

PARTLY_READ_IDLE_S = 2.0
"""A reader that takes a block in 128 KiB pieces comes back for the next one far sooner than this.
"""

RECENT_FILES_MAX = 1024
"""Closed files whose consumed blocks are remembered: several large models; 4 MB of memory."""

RECENT_BLOCKS_MAX = 8 << 20
"""A byte for each block of those files: 8 MB of memory for 8 TiB of objects."""


class State(Enum):
    """Life of a block: queued → fetching → ready; gone when it failed or its slot was taken."""

    QUEUED = "queued"
    FETCHING = "fetching"
    READY = "ready"
    GONE = "gone"


class Suspicion(Protocol):
    """That bytes of a file may be wrong (see `engine.checking`)."""

    pieces: dict[Extent, int]
    earlier: list[tuple[Extent, int]]

    @property
    def over(self) -> trio.Event:
        """Set once the file may be read again, or is wrong."""


class Watcher(Protocol):
    """Who wants to hear of a file's blocks (see `engine.hinted`). Takes note, and no time."""

    def settled(self, block: Block) -> None:
        """The block has become READY, or is GONE: with an error, or evicted."""

    def expired(self, block: Block) -> None:
        """The block was prefetched, and nobody came for it in time."""


class Block:
    """One aligned piece of a file, on its way or in the arena.

    The mutable state of Block is all of it. INVARIANT: READY is assigned once, after the last byte
    landed; `slot` is valid in FETCHING and READY; a READY block with waiters, or one that is being
    pushed into the page cache, keeps its slot. A spare (see `engine.hedges`) is in no file and only
    ever FETCHING.
    """

    __slots__ = (
        "_arrived", "error", "file", "index", "pushing", "served", "slot", "spare", "state",
        "touched_s",
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
        self.pushing = False
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
        if self.file.watcher is not None:
            self.file.watcher.settled(self)

    def rank(self, now_s: float) -> Rank:
        """What taking this block's slot costs."""
        if self.state is not State.READY or self.waiters or self.pushing:
            return Rank.PINNED
        if self.served >= self.extent.size:
            return Rank.IDLE if self.file.direct_opens else Rank.FREE
        if self.unread:
            return Rank.UNREAD
        return Rank.IDLE if now_s - self.touched_s > PARTLY_READ_IDLE_S else Rank.ACTIVE


class File:
    """One object version the engine has dealt with.

    `direct_opens` counts handles that bypass the page cache: with them a block that was read once
    may well be read again by the next rank, without them the kernel has it. `hinted` counts the
    opens that are a plan's of hints: a file that has no others is read by nobody.

    The mutable state of File is its blocks, opens, what is known of its header, and whether what
    was fetched ahead of it had to be given up.
    INVARIANT: every block in `blocks` is QUEUED, FETCHING or READY.
    """

    __slots__ = (
        "blocks", "changed", "data_start", "direct_opens", "doubtful", "hinted", "inode",
        "inspected", "ledger", "meta", "opens", "plan", "pushed", "setback", "started", "suspicion",
        "touched_block", "watcher",
    )  # fmt: skip

    def __init__(self, meta: ObjectMeta, plan: FilePlan) -> None:
        self.meta = meta
        self.plan = plan
        self.inode = 0
        self.blocks: dict[int, Block] = {}
        self.opens = 0
        self.direct_opens = 0
        self.hinted = 0
        self.setback = Setback()
        self.watcher: Watcher | None = None
        self.changed: FusefsError | None = None
        self.inspected = False
        self.started = False
        self.data_start: int | None = None
        self.touched_block: int | None = None
        self.pushed: PushedPages | None = None
        self.ledger: Ledger | None = None
        self.suspicion: Suspicion | None = None
        self.doubtful = False

    @property
    def is_wrong(self) -> bool:
        """Whether bytes of this version are known to be wrong: no more of them may be given out."""
        return isinstance(self.changed, ChecksumMismatch)

    def may_keep_pages(self) -> bool:
        """Whether an open finds good pages of the file in the kernel, if any; asked by each open.

        Those that a wrong version left there are dropped by the next open that has its own bytes.
        """
        keep = not self.doubtful and not self.is_wrong
        self.doubtful = self.is_wrong
        return keep

    def has(self, index: int) -> bool:
        """Whether this block is wanted, on its way or there."""
        return index in self.blocks


class FileTable:
    """The files the engine knows, by object version.

    What was consumed of a file, and where its data begins, is worth knowing when it is opened again
    with most of its pages still in the kernel; so the files closed last are kept for a while.

    The mutable state of FileTable is the files with opens or blocks, those closed last, and which
    versions were wrong when they were closed.
    INVARIANT: one File per ObjectId; a file without opens, blocks or plans under way may be dropped
    at any time and comes back the same, or knowing less.
    """

    def __init__(self, block_size: int, range_blocks: int) -> None:
        self.block_size = block_size
        self.range_blocks = range_blocks
        self._files: dict[tuple[str, str], File] = {}
        self._recent: OrderedDict[tuple[str, str], File] = OrderedDict()
        self._recent_blocks = 0
        self._wrong: set[tuple[str, str]] = set()

    def get(self, meta: ObjectMeta) -> File:
        """The file of this version, made on first use."""
        key = (meta.id.key, meta.id.etag)
        file = self._files.get(key)
        if file is None:
            file = self._recent.pop(key, None)
            if file is None:
                kind = kind_of(meta.id.key)
                plan = FilePlan(meta.size, self.block_size, self.range_blocks, kind)
                file = File(meta, plan)
                file.doubtful = key in self._wrong
                self._wrong.discard(key)
            else:
                self._recent_blocks -= file.plan.blocks
            self._files[key] = file
        return file

    def opened(self, meta: ObjectMeta) -> File:
        """The file, one open more."""
        file = self.get(meta)
        file.opens += 1
        return file

    def closed(self, file: File) -> None:
        """One open less; the file is put aside once nothing of it is left."""
        file.opens -= 1
        self.drop_if_unused(file)

    def drop_if_unused(self, file: File) -> None:
        """Put a file aside that is neither open nor has blocks.

        One that is wrong goes with its blocks: who opens it next gets another, that has none.
        """
        key = (file.meta.id.key, file.meta.id.etag)
        if file.opens > 0 or (file.blocks and not file.is_wrong):
            return
        if self._files.get(key) is not file:
            return
        del self._files[key]
        if file.is_wrong or file.doubtful:
            self._wrong.add(key)
        if file.pushed is not None:
            file.pushed.release()
            file.pushed = None
        if file.changed is not None or not (file.inspected or file.plan.consumed.known()):
            return
        self._recent[key] = file
        self._recent_blocks += file.plan.blocks
        while len(self._recent) > RECENT_FILES_MAX or self._recent_blocks > RECENT_BLOCKS_MAX:
            _, oldest = self._recent.popitem(last=False)
            self._recent_blocks -= oldest.plan.blocks

    def __len__(self) -> int:
        return len(self._files)
