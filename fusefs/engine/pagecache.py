"""Ready blocks into the kernel's page cache before anybody asks: what is pushed, and when not.

The writing is done by `engine.pusher`, a process of its own; here is decided what it writes. The
one idea: the reader of pushed pages is invisible, so the first page of every segment is left out.
The READ it causes, a milestone, says how far the reader has come, and so bounds what lies unread in
the page cache.

The rules that keep pushes from locking up with READs (a push waits in the kernel for a page that a
READ under way holds):
- pushes are written by a process on which no READ, no fetch and no other decision waits;
- a block that a READ waits for is never pushed: the READ's reply brings it;
- a READ that comes during a push waits for fetches alone, and those need no pusher;
- blocks being pushed keep their slots, but are never more than a quarter of them, so demand always
  finds room;
- a mount that nobody may abort (`abort` below /sys/fs/fuse/connections) is not pushed to: a dead
  daemon's pending READ would hold the pusher, and the pusher the mount, for ever.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.beginnings import start_module
from fusefs.engine.blocks import Block, File, State
from fusefs.engine.slots import Slots
from fusefs.errors import CannotStart
from fusefs.objects import Extent
from fusefs.policy.pushed import PAGE_BYTES, PushedPages, PushedTotals, segment_blocks
from fusefs.telemetry.counters import Counters

log = logging.getLogger("fusefs.pagecache")

MILESTONES_MAX = 2048
"""Pages kept for milestones to come: 8 MiB for 128 GiB of pushed pages ahead of their readers."""

SLOTS_FRACTION = 4
"""Blocks being pushed hold at most a quarter of the slots."""

PUSHING_BYTES_MAX = 128 << 20
"""Nor more than this: a pusher that does not keep up (it writes 1 GiB/s and more) had better leave
blocks to READs than have the arena touch new memory."""

PUSHES_MAX = 64
"""Under way at once; so many small datagrams fit every socket buffer."""

ROOM_INTERVAL_S = 1.0
"""How often the room for pages is looked at anew."""

LOST_FRACTION = 8
"""If more than an eighth of what was lately pushed is asked for again, the kernel drops pages
before they are read: pushing more would only drop more."""

LOST_BYTES_MIN = 64 << 20
LOST_PAUSE_S = 30.0

START_AGAIN_S = 10.0
"""Before another try, where the system refused us a process: READs serve meanwhile."""

STARTS_MAX = 4
"""A pusher that dies again and again is left dead: READs serve every byte without it."""


@dataclass(frozen=True, slots=True)
class Pusher:
    """A pusher that was started: where it takes pushes, and how to wait for its end."""

    channel: socket.socket
    pid: int
    wait: Callable[[], Awaitable[object]]


StartPusher = Callable[[], Awaitable[Pusher]]


@dataclass(slots=True, eq=False)
class _Push:
    """One message to the pusher: neighbouring blocks, from `start` on."""

    file: File
    blocks: list[Block]
    extent: Extent


@dataclass(slots=True)
class _Recent:
    """What was pushed and what of it was asked for again, since the last look."""

    pushed: int = 0
    lost: int = 0


class PageCache:
    """Pushes of one mount.

    The mutable state of PageCache is the pushes under way, the bytes ahead of the readers, and why
    nothing is pushed, if so. INVARIANT: a block is `pushing` exactly while it is in one push.
    """

    def __init__(
        self,
        arena: Arena,
        slots: Slots,
        counters: Counters,
        find_inode: Callable[[File], int | None],
        find_room: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self._arena = arena
        self._slots = slots
        self._counters = counters
        self._find_inode = find_inode
        self._find_room = find_room
        self._wake = wake
        self._channel: socket.socket | None = None
        self._under_way: dict[int, _Push] = {}
        self._pushing = 0
        self._next_push = 0
        self._totals = PushedTotals()
        self._segment_blocks = segment_blocks(arena.block_size)
        self._pushing_max = min(
            arena.budget.slots // SLOTS_FRACTION, PUSHING_BYTES_MAX // arena.block_size
        )
        self._room = 0
        self._looked_s = float("-inf")
        self._paused_until_s = float("-inf")
        self._recent = _Recent()
        self.refused: str | None = "the mount is starting"
        self.pid = 0

    async def run(self, start: StartPusher) -> None:
        """Keep a pusher; returns when it died too often, and is cancelled otherwise."""
        for _ in range(STARTS_MAX):
            pusher = await self._started(start)
            with pusher.channel as channel:
                self._channel = channel
                self.pid = pusher.pid
                await self._receive_all(channel)
                self._channel = None
            await pusher.wait()  # only a dead pusher writes no more
            for number in list(self._under_way):
                self._finish(number, lost=True)
            self._wake()
            log.warning("the page cache pusher died")
        self.refused = "the pusher died repeatedly"
        log.error("pages are not pushed any more: the pusher died %d times", STARTS_MAX)

    async def _started(self, start: StartPusher) -> Pusher:
        """A pusher, as soon as there can be one."""
        told = False
        while True:
            try:
                return await start()
            except CannotStart as error:
                if not told:
                    log.warning("nothing is pushed for now: %s", error)
                told = True
            await trio.sleep(START_AGAIN_S)

    def landed(self, blocks: list[Block]) -> None:
        """Blocks of one file, in order, have just become READY: push those nobody waits for."""
        if self._channel is None or self.refused is not None:
            return
        file = blocks[0].file
        if file.direct_opens or not self._has_room():
            return
        inode = self._find_inode(file)
        if inode is None:
            return
        run: list[Block] = []
        for block in blocks:
            if run and not self._continues(run[-1], block):
                self._push(file, inode, run)
                run = []
            if not block.waiters and block.state is State.READY:
                run.append(block)
        if run:
            self._push(file, inode, run)

    def reading(self, file: File, extent: Extent, indices: range) -> bytes | None:
        """A READ came: account for it. Returns its bytes if it asks for a milestone alone."""
        pages = file.pushed
        if pages is None:
            return None
        for index in indices:
            passed = pages.arrived(index)
            file.plan.passed(passed // self._arena.block_size)
        page = pages.milestone(extent.start, extent.stop)
        if page is None and not file.direct_opens:  # those ask for what is there as well
            for index in indices:
                if pages.lost(index):
                    self._lost()
        return page

    def allow(self, refused: str | None) -> None:
        """Begin to push, or say why not."""
        self.refused = refused

    def statistics(self) -> dict[str, int | str | None]:
        """For the status answer."""
        return {
            "pushing": self._pushing,
            "ahead_bytes": self._totals.ahead_bytes,
            "room_bytes": self._room,
            "refused": self.refused,
        }

    # -- decide -----------------------------------------------------------------------------------

    def _continues(self, last: Block, block: Block) -> bool:
        """Whether one push can hold both."""
        if block.waiters or self._is_milestone(block.index):
            return False
        return (block.index, block.slot) == (last.index + 1, last.slot + 1)

    def _is_milestone(self, index: int) -> bool:
        return index % self._segment_blocks == 0

    def _has_room(self) -> bool:
        if len(self._under_way) >= PUSHES_MAX or self._totals.milestones >= MILESTONES_MAX:
            return False
        if self._pushing >= self._pushing_max:
            return False
        now = trio.current_time()
        if now < self._paused_until_s:
            return False
        if now - self._looked_s > ROOM_INTERVAL_S:
            self._looked_s = now
            self._room = self._find_room()
        return self._totals.ahead_bytes < self._room

    def _lost(self) -> None:
        """A pushed block is asked for again: the kernel let go of it."""
        self._recent.lost += self._arena.block_size
        self._counters.pushed_pages_lost_bytes += self._arena.block_size
        recent = self._recent
        if recent.lost > max(LOST_BYTES_MIN, recent.pushed // LOST_FRACTION):
            log.warning(
                "the kernel drops pushed pages before they are read; none are pushed for %d s",
                LOST_PAUSE_S,
            )
            self._paused_until_s = trio.current_time() + LOST_PAUSE_S
            self._recent = _Recent()

    # -- push -------------------------------------------------------------------------------------

    def _push(self, file: File, inode: int, blocks: list[Block]) -> None:
        """Send one push: neighbours in file and arena, of which only the first has a milestone."""
        channel = self._channel
        assert channel is not None
        extent = Extent(blocks[0].extent.start, blocks[-1].extent.stop)
        at = blocks[0].slot * self._arena.block_size
        skip = PAGE_BYTES if self._is_milestone(blocks[0].index) else 0
        if extent.size <= skip:
            return
        self._next_push += 1
        message = {
            "id": self._next_push,
            "inode": inode,
            "start": extent.start + skip,
            "at": at + skip,
            "size": extent.size - skip,
        }
        try:
            channel.send(jobs.encode(message))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return  # busy, or just died: READs will serve these blocks
        for block in blocks:
            block.pushing = True
        self._pushing += len(blocks)
        self._under_way[self._next_push] = _Push(file, blocks, extent)

    async def _receive_all(self, channel: socket.socket) -> None:
        """Take answers until the pusher is gone."""
        while True:
            await trio.lowlevel.wait_readable(channel)
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        data = channel.recv(jobs.MESSAGE_BYTES_MAX)
                    except ConnectionResetError:
                        return
                    if not data:
                        return
                    message = jobs.decode(data)
                    self._finish(message["id"], lost=message["errno"] != 0)
                    if message["errno"]:
                        self._counters.pushes_failed += 1
            self._wake()

    def _finish(self, number: int, lost: bool) -> None:
        """The pusher has let go of the slots; unless `lost`, the pages are in the page cache."""
        push = self._under_way.pop(number)
        self._pushing -= len(push.blocks)
        file = push.file
        for block in push.blocks:
            block.pushing = False
        if lost:
            return
        if file.pushed is None:
            plan = file.plan
            file.pushed = PushedPages(self._totals, plan.blocks, plan.block_size)
        first, milestone = push.blocks[0], None
        if self._is_milestone(first.index):
            size = min(PAGE_BYTES, first.extent.size)
            milestone = bytes(self._arena.view(first.slot, 0, size))
        file.pushed.add(first.index, len(push.blocks), push.extent.size, milestone)
        for block in push.blocks:
            self._slots.pushed(block)
        self._recent.pushed += push.extent.size
        self._counters.bytes_pushed += push.extent.size


async def start_pusher(fuse_fd: int, arena_fd: int, threads: int) -> Pusher:
    """Start the pusher of the mount behind `fuse_fd`. Raises CannotStart."""
    fds = (fuse_fd, arena_fd)
    ours, process = await start_module("fusefs.engine.pusher", fds, str(threads))
    ours.setblocking(False)
    return Pusher(ours, process.pid, process.wait)
