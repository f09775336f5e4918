"""Plans that take blocks out of the arena, on a virtual clock: windows, pins, groups."""

from __future__ import annotations

from collections import deque

import trio
from trio.testing import MockClock

from fusefs.engine.handed import GROUP_TTL_S, Groups, Pins, SlotPlan
from fusefs.errors import AccessDenied, FusefsError
from fusefs.policy.budget import arena_budget
from fusefs.policy.plan import Priority
from tests.conftest import ExpectedWarnings
from tests.engine.simulated import BLOCK, RANGE, Engine, content, open_engine

Extents = list[tuple[int, int]]


class Rank:
    """One loader: takes what is handed to it, checks the bytes, gives back when told to."""

    def __init__(self, engine: Engine, pins: Pins, window: int | None = None) -> None:
        self.engine = engine
        self.came: deque[tuple[int, int, int, int]] = deque()
        self.errors: list[FusefsError] = []
        self.keys: dict[int, str] = {}
        self.taken = 0
        self.plan = SlotPlan(
            Priority.HINTED,
            True,
            self,
            pins,
            pins.window_of(None if window is None else window * BLOCK),
            engine.hinted.handed_on,
        )
        engine.hinted.add(self.plan)

    def want(self, key: str, extents: Extents) -> None:
        inode = 5000 + len(self.keys)
        self.keys[inode] = key
        part = self.engine.hinted.part(self.plan, self.engine.bucket.meta(key), inode)
        self.plan.want(part, extents)
        self.engine.hinted.look_again()

    def start(self) -> None:
        self.plan.start()
        self.engine.hinted.look_again()

    def handed(self, inode: int, start: int, size: int, at: int) -> None:
        self.came.append((inode, start, size, at))

    def failed(self, inode: int, error: FusefsError) -> None:
        self.errors.append(error)

    def take(self) -> None:
        """Take all that came: compare, release."""
        while self.came:
            inode, start, size, at = self.came.popleft()
            _, data = self.engine.bucket.objects[self.keys[inode]]
            assert self.engine.workers._map[at : at + size] == data[start : start + size]
            self.taken += size
            assert self.plan.release([at]) == []

    async def load(self, pause_s: float = 0.01) -> None:
        while self.plan.ready_bytes < self.plan.total_bytes:
            await trio.sleep(pause_s)
            self.take()
        self.take()


def fetched(engine: Engine) -> int:
    return sum(extent.size for _, extent in engine.bucket.log)


def pins_of(slots: int, capacity: int = 8) -> Pins:
    return Pins(arena_budget(slots * BLOCK, 1, BLOCK, RANGE, capacity))


async def test_all_bytes_come_through_a_window(autojump_clock: MockClock) -> None:
    """A plan ten times the arena is handed out whole, each block once, in full ranges."""
    async with open_engine(slots=64) as engine:
        pins = pins_of(64)
        engine.bucket.put("a", 640 * BLOCK)
        rank = Rank(engine, pins)
        rank.want("a", [(0, 640 * BLOCK)])
        await trio.sleep(1)
        assert fetched(engine) == 0  # not before it was mapped
        rank.start()
        await rank.load()
        assert rank.taken == fetched(engine) == 640 * BLOCK
        assert len(engine.bucket.log) <= 640 // 4
        assert len(pins) == 0


async def test_only_what_was_asked_for_is_handed_out(autojump_clock: MockClock) -> None:
    """Blocks with a wanted byte, and no other; asking again hands out again."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a", 100 * BLOCK)
        rank = Rank(engine, pins_of(64))
        rank.want("a", [(5, 6), (50 * BLOCK + 1, 52 * BLOCK)])
        rank.start()
        await rank.load()
        assert rank.taken == fetched(engine) == 3 * BLOCK
        rank.want("a", [(7, 8)])
        await rank.load()
        assert rank.taken == 4 * BLOCK


async def test_who_gives_nothing_back_stops_itself(autojump_clock: MockClock) -> None:
    """Its window fills; a reader of the same mount gets every byte, and another plan goes on."""
    async with open_engine(slots=64) as engine:
        pins = pins_of(64)
        for key in ("held", "read", "other"):
            engine.bucket.put(key, 200 * BLOCK)
        greedy = Rank(engine, pins, window=1000)
        greedy.want("held", [(0, 200 * BLOCK)])
        greedy.start()
        await trio.sleep(60)
        assert len(greedy.came) == len(pins) == 32  # half of the slots at most
        file = engine.open("read")
        for index in range(200):
            got = await engine.read(file, index * BLOCK, BLOCK)
            assert got == content("read", 1, 200 * BLOCK)[index * BLOCK : (index + 1) * BLOCK]
        greedy.plan.close()
        engine.hinted.remove(greedy.plan)
        assert len(pins) == 0
        other = Rank(engine, pins)
        other.want("other", [(0, 200 * BLOCK)])
        other.start()
        await other.load()
        assert other.taken == 200 * BLOCK


async def test_ranks_of_a_group_cost_one_download(autojump_clock: MockClock) -> None:
    """Four ranks at different speeds, one of them late: each byte is fetched once."""
    async with open_engine(slots=128) as engine:
        pins, groups = pins_of(128), Groups()
        engine.bucket.put("a", 400 * BLOCK)

        async def load(number: int, delay_s: float) -> None:
            await trio.sleep(delay_s)
            rank = Rank(engine, pins, window=16)
            rank.plan.group = groups.join("job", number, 4)
            rank.want("a", [(0, 400 * BLOCK)])
            rank.start()
            await rank.load(0.005 * (number + 1))
            assert rank.taken == 400 * BLOCK

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(load, number, 0.2 * number)
        assert fetched(engine) <= 1.05 * 400 * BLOCK


async def test_a_rank_that_never_comes_is_not_waited_for_long(
    autojump_clock: MockClock,
) -> None:
    """After a while the others go on without it, at full speed."""
    async with open_engine(slots=64) as engine:
        pins, groups = pins_of(64), Groups()
        engine.bucket.put("a", 400 * BLOCK)
        rank = Rank(engine, pins)
        rank.plan.group = groups.join("job", 0, 2)
        rank.want("a", [(0, 400 * BLOCK)])
        rank.start()
        began = trio.current_time()
        await rank.load()
        assert rank.taken == 400 * BLOCK
        assert trio.current_time() - began < 2 * GROUP_TTL_S
        groups.leave("job", 0)
        assert groups.join("job", 0, 7).size == 7  # the id is free again


async def test_a_refused_file_fails_and_the_others_come(autojump_clock: MockClock) -> None:
    """What fails for good is said once, and does not hold the window."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a", 4 * BLOCK)
        engine.bucket.put("b", 40 * BLOCK)
        engine.bucket.faults.append(AccessDenied("not you"))
        rank = Rank(engine, pins_of(64))
        rank.want("a", [(0, 4 * BLOCK)])
        rank.start()
        await trio.sleep(1)
        rank.want("b", [(0, 40 * BLOCK)])
        for _ in range(100):
            await trio.sleep(0.01)
            rank.take()
        assert [str(error) for error in rank.errors] == ["not you"]
        assert rank.taken == 40 * BLOCK


async def test_a_changed_file_is_said_to_have_changed(
    autojump_clock: MockClock, expect_warning: ExpectedWarnings
) -> None:
    """No byte of the new version comes, and the plan ends for that file."""
    expect_warning("a changed in the store")
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a", 100 * BLOCK)
        rank = Rank(engine, pins_of(64))
        rank.want("a", [(0, 100 * BLOCK)])
        rank.start()
        await trio.sleep(1)
        rank.came.clear()  # of the old version: not compared
        engine.bucket.put("a", 100 * BLOCK)
        rank.plan.release(list(rank.plan._held))
        await trio.sleep(1)
        assert len(rank.errors) == 1
        assert rank.came == deque()
