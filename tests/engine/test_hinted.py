"""Plans of hints in the engine, on a virtual clock: what is fetched, how often, and when not."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from fusefs.engine.blocks import File
from fusefs.engine.hinted import WarmPlan
from fusefs.errors import AccessDenied, FusefsError
from fusefs.policy.plan import Priority
from tests.engine.simulated import BLOCK, Engine, content, open_engine, shard

Extents = list[tuple[int, int]]


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.extents: Extents = []
        self.errors: list[FusefsError] = []

    def ready(self, inode: int, extents: Extents) -> None:
        self.extents += extents

    def failed(self, inode: int, error: FusefsError) -> None:
        self.errors.append(error)

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.extents)


def plan_for(
    engine: Engine, wishes: dict[str, Extents], priority: Priority = Priority.HINTED
) -> tuple[WarmPlan, Heard]:
    heard = Heard()
    plan = WarmPlan(priority, in_order=True, listener=heard)
    engine.hinted.add(plan)
    for inode, (key, extents) in enumerate(wishes.items(), 5000):
        plan.want(engine.hinted.part(plan, engine.bucket.meta(key), inode), extents)
    engine.hinted.look_again()
    return plan, heard


def fetched(engine: Engine) -> int:
    return sum(extent.size for _, extent in engine.bucket.log)


async def test_a_plan_is_fetched_and_heard_of(autojump_clock: MockClock) -> None:
    """All of it lands without a read, in blocks, and each wanted byte is told once."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a", 100 * BLOCK)
        wish = [(10 * BLOCK, 12 * BLOCK), (40 * BLOCK + 5, 41 * BLOCK), (3, 4)]
        plan, heard = plan_for(engine, {"a": wish})
        await trio.sleep(1)
        assert sorted(heard.extents) == sorted([(10 * BLOCK, 11 * BLOCK), (11 * BLOCK, 12 * BLOCK),
                                                (40 * BLOCK + 5, 41 * BLOCK), (3, 4)])  # fmt: skip
        assert plan.ready_bytes == plan.total_bytes == heard.bytes
        assert fetched(engine) == 4 * BLOCK
        file = engine.open("a")
        assert (
            await engine.read(file, 40 * BLOCK + 5, 9)
            == content("a", 1, 100 * BLOCK)[40 * BLOCK + 5 : 40 * BLOCK + 14]
        )
        assert engine.counters.hits == 1


async def test_equal_plans_cost_one_download(autojump_clock: MockClock) -> None:
    """Eight ranks that want the same bytes hear of all of them, and each is fetched once."""
    async with open_engine(slots=128) as engine:
        engine.bucket.put("a", 60 * BLOCK)
        plans = [plan_for(engine, {"a": [(0, 60 * BLOCK)]}) for _ in range(8)]
        await trio.sleep(1)
        assert [heard.bytes for _, heard in plans] == [60 * BLOCK] * 8
        assert fetched(engine) == 60 * BLOCK
        _, heard = plan_for(engine, {"a": [(5, 7)]})  # a late rank is told at once
        assert heard.extents == [(5, 7)]


async def test_touching_a_planned_shard_fetches_no_more_than_the_plan(
    autojump_clock: MockClock,
) -> None:
    """A selective plan stands for the whole-file plan, until somebody reads elsewhere."""
    async with open_engine(slots=256, guided=True) as engine:
        engine.bucket.put_bytes("a.safetensors", shard(2000 * BLOCK))
        wish = [(100 * BLOCK, 110 * BLOCK), (200 * BLOCK, 210 * BLOCK)]
        plan_for(engine, {"a.safetensors": wish})
        file = engine.open("a.safetensors")
        await engine.read(file, 100 * BLOCK, 2 * BLOCK)
        await engine.read(file, 205 * BLOCK, BLOCK)
        await trio.sleep(1)
        assert fetched(engine) == 20 * BLOCK
        assert not file.started
        await engine.read(file, 1900 * BLOCK, BLOCK)
        await trio.sleep(1)
        assert file.started
        assert fetched(engine) > 40 * BLOCK


async def test_demand_and_others_prefetch_go_on_beside_a_plan_nobody_reads(
    autojump_clock: MockClock,
) -> None:
    """A plan larger than the arena leaves demand its reserve, and stands still after a while."""
    async with open_engine(slots=32) as engine:
        engine.bucket.put("big", 4000 * BLOCK)
        engine.bucket.put("small", 4 * BLOCK)
        _, heard = plan_for(engine, {"big": [(0, 4000 * BLOCK)]})
        await trio.sleep(5)
        assert heard.bytes == 24 * BLOCK  # three quarters of the slots
        file = engine.open("small")
        assert await engine.read(file, 0, BLOCK) == content("small", 1, 4 * BLOCK)[:BLOCK]
        await trio.sleep(600)
        assert fetched(engine) < 80 * BLOCK
        # Who comes at last finds it going on.
        reader = engine.open("big")
        for index in range(200):
            await engine.read(reader, index * BLOCK, BLOCK)
        await trio.sleep(1)
        assert heard.bytes >= 200 * BLOCK


async def test_cancelling_stops_at_once_and_keeps_what_is_there(
    autojump_clock: MockClock,
) -> None:
    """After `remove` only what was on its way lands, and the file is as if never planned."""
    async with open_engine(slots=256, capacity=2) as engine:
        engine.bucket.put("a", 1000 * BLOCK)
        plan, heard = plan_for(engine, {"a": [(0, 1000 * BLOCK)]})
        await trio.sleep(0.06)
        file = next(iter(plan.parts.values())).file
        engine.hinted.remove(plan)
        before, told = fetched(engine), heard.bytes
        await trio.sleep(10)
        assert fetched(engine) == before < 100 * BLOCK
        assert heard.bytes == told
        assert (file.opens, file.hinted, file.watcher) == (0, 0, None)
        assert not engine.slots.hinted


async def test_a_refused_file_fails_alone(autojump_clock: MockClock) -> None:
    """What the store refuses is said once, and the other file's bytes come."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a", 2 * BLOCK)
        engine.bucket.put("b", 2 * BLOCK)
        engine.bucket.faults.append(AccessDenied("not you"))
        plan, heard = plan_for(engine, {"a": [(0, 2 * BLOCK)], "b": [(0, 2 * BLOCK)]})
        await trio.sleep(5)
        assert [str(error) for error in heard.errors] == ["not you"]
        assert heard.bytes == 2 * BLOCK
        assert not plan.wants_more


async def test_a_warm_plan_comes_after_what_is_being_read(autojump_clock: MockClock) -> None:
    """Files that somebody reads are fetched before those that are merely to be warm."""
    async with open_engine(slots=512, capacity=1) as engine:
        engine.bucket.put("read", 30 * BLOCK)
        engine.bucket.put("warm", 30 * BLOCK)
        file = engine.open("read")
        await engine.read(file, 0, BLOCK)
        plan_for(engine, {"warm": [(0, 30 * BLOCK)]}, Priority.WARM)
        await trio.sleep(5)
        keys = [key for key, _ in engine.bucket.log]
        assert keys == sorted(keys)  # "read" < "warm"
        assert fetched(engine) == 60 * BLOCK


async def test_evicted_blocks_come_again_when_their_reader_comes(
    autojump_clock: MockClock,
) -> None:
    """A reader that is late meets one miss, not one for each block of the plan."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a.safetensors", 400 * BLOCK)
        engine.bucket.put("b", 400 * BLOCK)
        plan_for(engine, {"a.safetensors": [(100 * BLOCK, 130 * BLOCK)]})
        await trio.sleep(60)
        other: File = engine.open("b")
        for index in range(400):
            await engine.read(other, index * BLOCK, BLOCK)
        misses = engine.counters.misses
        file = engine.open("a.safetensors")
        for index in range(100, 130):
            await engine.read(file, index * BLOCK, BLOCK)
        assert engine.counters.misses - misses <= 2
