"""What is pushed into the page cache and when not, with a pusher that is told how to answer."""

from __future__ import annotations

import errno
import mmap
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.blocks import Block, File, FileTable, State
from fusefs.engine.pagecache import (
    LOST_BYTES_MIN,
    LOST_PAUSE_S,
    ROOM_INTERVAL_S,
    STARTS_MAX,
    PageCache,
    Pusher,
)
from fusefs.engine.slots import Slots
from fusefs.objects import Extent, ObjectId, ObjectMeta
from fusefs.policy.budget import arena_budget
from fusefs.policy.pushed import PAGE_BYTES, SEGMENT_BYTES
from fusefs.policy.slots import Rank
from fusefs.telemetry.counters import Counters
from tests.conftest import ExpectedWarnings

MIB = 1 << 20
PER_SEGMENT = SEGMENT_BYTES // MIB
SLOTS = 64


@dataclass(slots=True)
class SimulatedPusher:
    """The other end: takes messages, answers when told to, dies when told to."""

    taken: list[jobs.Message] = field(default_factory=list)
    starts: int = 0
    ends: list[socket.socket] = field(default_factory=list)

    async def start(self) -> Pusher:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.starts += 1
        self.ends.append(theirs)
        return Pusher(ours, 1000 + self.starts, trio.lowlevel.checkpoint)

    def take(self) -> list[jobs.Message]:
        """What has been sent since the last time."""
        messages = []
        while True:
            try:
                messages.append(jobs.decode(self.ends[-1].recv(jobs.MESSAGE_BYTES_MAX)))
            except BlockingIOError:
                self.taken += messages
                return messages

    def answer(self, message: jobs.Message, number: int = 0) -> None:
        self.ends[-1].send(jobs.encode({"id": message["id"], "errno": number}))

    def die(self) -> None:
        self.ends[-1].close()


@dataclass(slots=True)
class Parts:
    """A page cache and what it stands on. `inode` None: the kernel does not know the file."""

    pages: PageCache
    pusher: SimulatedPusher
    slots: Slots
    files: FileTable
    counters: Counters
    memory: mmap.mmap
    inode: int | None = 77
    room: int = 1 << 40

    def open(self, blocks: int) -> File:
        meta = ObjectMeta(ObjectId(f"f{blocks}", "e"), blocks * MIB - 100, 0)
        return self.files.opened(meta)

    def land(self, file: File, first: int, count: int, waiters: int = 0) -> list[Block]:
        """Blocks that have just become ready, with recognisable bytes."""
        blocks = [Block(file, first + i) for i in range(count)]
        assert self.slots.settle_in(blocks, Rank.IDLE) == count
        for block in blocks:
            block.waiters = waiters
            self.memory[block.slot * MIB : block.slot * MIB + 8] = b"%08d" % block.index
            block.settle(State.READY)
        self.pages.landed(blocks)
        return blocks


@asynccontextmanager
async def open_parts() -> AsyncIterator[Parts]:
    """Everything running, and allowed to push."""
    budget = arena_budget(SLOTS * MIB, 1, MIB, 8 * MIB, 2)
    arena, counters = Arena(budget), Counters()
    files = FileTable(MIB, budget.range_blocks)
    slots = Slots(budget, files, counters)
    parts: Parts
    pages = PageCache(
        arena, slots, counters, lambda file: parts.inode, lambda: parts.room, lambda: None
    )
    memory = mmap.mmap(arena.fd, budget.size_bytes)
    parts = Parts(pages, SimulatedPusher(), slots, files, counters, memory)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pages.run, parts.pusher.start)
            await trio.testing.wait_all_tasks_blocked()
            pages.allow(None)
            yield parts
            nursery.cancel_scope.cancel()
    finally:
        for end in parts.pusher.ends:
            end.close()
        memory.close()
        arena.close()


async def settle() -> None:
    """Let answers on sockets arrive."""
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_neighbours_go_in_one_push_and_are_read_from_then_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One message covers a run, its slots stay until the answer, and then they are free."""
    async with open_parts() as parts:
        file = parts.open(20)
        blocks = parts.land(file, 1, 4)
        (message,) = parts.pusher.take()
        assert (message["inode"], message["start"], message["size"]) == (77, MIB, 4 * MIB)
        assert message["at"] == blocks[0].slot * MIB
        assert {block.rank(0.0) for block in blocks} == {Rank.PINNED}
        assert parts.slots.statistics()["unread"] == 4
        parts.pusher.answer(message)
        await settle()
        assert {block.rank(0.0) for block in blocks} == {Rank.FREE}
        assert parts.slots.statistics()["unread"] == 0
        assert parts.counters.bytes_pushed == 4 * MIB
        assert 4 in file.plan.consumed


async def test_the_last_push_ends_where_the_file_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A byte past the end would grow the file, and the kernel would drop every page of it."""
    async with open_parts() as parts:
        file = parts.open(20)
        parts.land(file, 18, 2)
        (message,) = parts.pusher.take()
        assert message["start"] + message["size"] == file.meta.size


async def test_a_block_somebody_waits_for_is_not_pushed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The READ's own reply brings it: a push would wait for that reply."""
    async with open_parts() as parts:
        file = parts.open(20)
        parts.land(file, 1, 2, waiters=1)
        assert parts.pusher.take() == []
        blocks = parts.land(file, 4, 3)
        parts.pusher.take()
        assert all(block.pushing for block in blocks)


async def test_a_waited_for_block_splits_a_run(autojump_clock: trio.testing.MockClock) -> None:
    """Its neighbours are pushed on both sides of it."""
    async with open_parts() as parts:
        file = parts.open(20)
        blocks = [Block(file, index) for index in range(1, 6)]
        parts.slots.settle_in(blocks, Rank.IDLE)
        for block in blocks:
            block.settle(State.READY)
        blocks[2].waiters = 1
        parts.pages.landed(blocks)
        starts = [(m["start"] // MIB, m["size"] // MIB) for m in parts.pusher.take()]
        assert starts == [(1, 2), (4, 2)]


async def test_blocks_that_are_no_neighbours_in_memory_go_apart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A block that a hedge brought lies elsewhere: each push reads from where its bytes are."""
    async with open_parts() as parts:
        file = parts.open(20)
        blocks = [Block(file, index) for index in range(1, 5)]
        parts.slots.settle_in(blocks, Rank.IDLE)
        spare = Block(file, 2, spare=True)
        assert parts.slots.settle_spares([spare]) == 1
        parts.slots.exchange(blocks[1], spare)
        for block in blocks:
            block.settle(State.READY)
        parts.pages.landed(blocks)
        sent = [(m["start"] // MIB, m["size"] // MIB, m["at"] // MIB) for m in parts.pusher.take()]
        slots = [block.slot for block in blocks]
        assert sent == [(1, 1, slots[0]), (2, 1, slots[1]), (3, 2, slots[2])]


async def test_the_first_page_of_a_segment_stays_out_and_tells_of_its_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The milestone is answered from memory, with the right bytes, and nothing is ahead then."""
    async with open_parts() as parts:
        file = parts.open(2 * PER_SEGMENT)
        parts.land(file, PER_SEGMENT - 1, 3)
        before, after = parts.pusher.take()
        assert (before["start"], before["size"]) == (SEGMENT_BYTES - MIB, MIB)
        assert (after["start"], after["size"]) == (
            SEGMENT_BYTES + PAGE_BYTES, 2 * MIB - PAGE_BYTES,
        )  # fmt: skip
        parts.pusher.answer(before)
        parts.pusher.answer(after)
        await settle()
        assert parts.pages.statistics()["ahead_bytes"] == 3 * MIB
        extent = Extent(SEGMENT_BYTES, SEGMENT_BYTES + PAGE_BYTES)
        page = parts.pages.reading(file, extent, range(PER_SEGMENT, PER_SEGMENT + 1))
        assert page is not None
        assert page[:8] == b"%08d" % PER_SEGMENT
        assert parts.pages.statistics()["ahead_bytes"] == MIB
        assert parts.counters.pushed_pages_lost_bytes == 0


async def test_nothing_is_pushed_where_it_would_not_help(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not for readers past the page cache, not to inodes the kernel does not know, not refused."""
    async with open_parts() as parts:
        file = parts.open(40)
        file.direct_opens = 1
        parts.land(file, 1, 1)
        file.direct_opens = 0
        parts.inode = None
        parts.land(file, 2, 1)
        parts.inode = 77
        parts.pages.allow("kernel.push is off")
        parts.land(file, 3, 1)
        assert parts.pusher.take() == []
        parts.pages.allow(None)
        parts.land(file, 4, 1)
        assert len(parts.pusher.take()) == 1


async def test_what_lies_ahead_is_bounded_by_the_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With the room used up blocks stay in the arena, until a reader has come or there is more."""
    async with open_parts() as parts:
        parts.room = 3 * MIB
        file = parts.open(200)
        parts.land(file, 1, 4)
        parts.pusher.answer(parts.pusher.take()[0])
        await settle()
        parts.land(file, 5, 2)
        assert parts.pusher.take() == []
        parts.pages.reading(file, Extent(0, 1), range(1))
        parts.land(file, 7, 2)
        assert len(parts.pusher.take()) == 1
        parts.room = 0
        await trio.sleep(ROOM_INTERVAL_S * 2)
        parts.land(file, 9, 1)
        assert parts.pusher.take() == []


async def test_pushes_hold_at_most_a_quarter_of_the_slots(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Pushes that hang never take the room that a READ's own fetch needs."""
    async with open_parts() as parts:
        file = parts.open(200)
        for first in range(1, 1 + 5 * 8, 8):
            parts.land(file, first, 8)
        held = sum(message["size"] for message in parts.pusher.take())
        assert held == SLOTS // 4 * MIB


async def test_a_refused_push_leaves_the_block_to_reads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """ENOENT (the kernel forgot the inode) is counted, and the block is unread as before."""
    async with open_parts() as parts:
        file = parts.open(20)
        (block,) = parts.land(file, 1, 1)
        parts.pusher.answer(parts.pusher.take()[0], errno.ENOENT)
        await settle()
        assert (parts.counters.pushes_failed, parts.counters.bytes_pushed) == (1, 0)
        assert block.rank(0.0) is Rank.UNREAD


async def test_pages_the_kernel_drops_stop_the_pushing(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """If much of what was pushed is asked for again, nothing is pushed for a while."""
    async with open_parts() as parts:
        expect_warning("drops pushed pages")
        count = LOST_BYTES_MIN // MIB + 8
        file = parts.open(4 * count)
        for first in range(1, count, 8):
            parts.land(file, first, 8)
            for message in parts.pusher.take():
                parts.pusher.answer(message)
            await settle()
        for index in range(1, LOST_BYTES_MIN // MIB + 2):
            extent = Extent(index * MIB + PAGE_BYTES, (index + 1) * MIB)
            parts.pages.reading(file, extent, range(index, index + 1))
        assert parts.counters.pushed_pages_lost_bytes == LOST_BYTES_MIN + MIB
        parts.land(file, 2 * count, 1)
        assert parts.pusher.take() == []
        await trio.sleep(LOST_PAUSE_S + 1)
        parts.land(file, 2 * count + 1, 1)
        assert len(parts.pusher.take()) == 1


async def test_readers_past_the_page_cache_say_nothing_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A READ by O_DIRECT for a pushed block is no sign that the kernel dropped it."""
    async with open_parts() as parts:
        file = parts.open(20)
        parts.land(file, 1, 4)
        parts.pusher.answer(parts.pusher.take()[0])
        await settle()
        file.direct_opens = 1
        parts.pages.reading(file, Extent(MIB, 2 * MIB), range(1, 2))
        assert parts.counters.pushed_pages_lost_bytes == 0
        file.direct_opens = 0
        parts.pages.reading(file, Extent(MIB, 2 * MIB), range(1, 2))
        assert parts.counters.pushed_pages_lost_bytes == MIB


async def test_a_pusher_that_dies_gives_its_blocks_back_and_is_replaced(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Its pushes count as not done; after some deaths it stays dead and the mount goes on."""
    async with open_parts() as parts:
        expect_warning("the page cache pusher died")
        expect_warning("pages are not pushed any more")
        file = parts.open(200)
        for death in range(STARTS_MAX):
            (block,) = parts.land(file, 1 + death, 1)
            assert len(parts.pusher.take()) == 1
            parts.pusher.die()
            await settle()
            assert block.rank(0.0) is Rank.UNREAD
        assert parts.pusher.starts == STARTS_MAX
        assert parts.pages.refused == "the pusher died repeatedly"
        (block,) = parts.land(file, 100, 1)
        assert not block.pushing
        assert parts.counters.bytes_pushed == 0


async def test_a_dropped_file_leaves_no_trace_in_the_sums(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once the last handle and the last block are gone nothing of it counts as ahead."""
    async with open_parts() as parts:
        file = parts.open(PER_SEGMENT)
        blocks = parts.land(file, 0, 8)
        for message in parts.pusher.take():
            parts.pusher.answer(message)
        await settle()
        assert parts.pages.statistics()["ahead_bytes"] == 8 * MIB
        parts.files.closed(file)
        for block in blocks:
            parts.slots.forget(block)
        assert parts.pages.statistics()["ahead_bytes"] == 0
        assert len(parts.files) == 0
