"""Small files come along with the first one that is read beside them."""

from __future__ import annotations

import trio
import trio.testing

from fusefs.objects import ObjectId, ObjectMeta
from fusefs.policy.companions import COMPANIONS_MAX, companions_of
from tests.engine.simulated import BLOCK, Engine, content, open_engine

MIB = 1 << 20
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "merges.txt", "x.index.json"]


def model(engine: Engine) -> None:
    """A model's directory."""
    for number, key in enumerate(SMALL):
        engine.bucket.put(key, 100 + number * BLOCK)
    engine.bucket.put("model.safetensors", 1000 * BLOCK)
    engine.bucket.put("picture.png", 100)


async def test_small_files_come_along(autojump_clock: trio.testing.MockClock) -> None:
    """After the first file the others cost no round trip, and weights stay where they are."""
    async with open_engine(slots=512, capacity=32, guided=True) as engine:
        model(engine)
        config = engine.open("config.json")
        await engine.read(config, 0, 100)
        await trio.sleep(1)
        assert {key for key, _ in engine.bucket.log} == set(SMALL)
        began = trio.current_time()
        for key in SMALL:
            file = engine.open(key)
            assert await engine.read(file, 0, file.meta.size) == content(key, 1, file.meta.size)
            engine.close(file)
        assert trio.current_time() == began
        assert engine.counters.bytes_fetched == sum(engine.bucket.meta(key).size for key in SMALL)
        assert engine.slots.statistics()["unread"] == 0


async def test_they_come_along_once_in_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """A second file read in the directory starts nothing; a minute later the next one does."""
    async with open_engine(slots=512, capacity=32, guided=True) as engine:
        model(engine)
        await engine.read(engine.open("config.json"), 0, 100)
        await trio.sleep(1)
        engine.bucket.put("late.json", 100)
        await engine.read(engine.open("tokenizer.json"), 0, 100)
        await trio.sleep(1)
        assert "late.json" not in {key for key, _ in engine.bucket.log}
        await trio.sleep(60)
        await engine.read(engine.open("tokenizer.json"), 0, 100)
        await trio.sleep(1)
        assert "late.json" in {key for key, _ in engine.bucket.log}


async def test_unread_companions_expire_as_waste(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody came for them: they make room for a load, and are counted."""
    async with open_engine(slots=64, capacity=8, guided=True) as engine:
        model(engine)
        await engine.read(engine.open("config.json"), 0, 100)
        await trio.sleep(60)
        assert engine.slots.statistics()["unread"] > 0
        file = engine.open("model.safetensors")
        file.plan.want_whole(0)
        for block in range(1000):
            await engine.read(file, block * BLOCK, BLOCK)
        assert engine.counters.prefetch_wasted_bytes > 0
        assert engine.slots.statistics()["unread"] == 0


async def test_they_do_not_delay_demand(autojump_clock: trio.testing.MockClock) -> None:
    """A read beside fifty companions under way costs one round trip."""
    async with open_engine(slots=512, capacity=8, guided=True) as engine:
        for number in range(50):
            engine.bucket.put(f"{number}.json", BLOCK)
        engine.bucket.put("big.dat", 1000 * BLOCK)
        await engine.read(engine.open("0.json"), 0, 100)
        began = trio.current_time()
        await engine.read(engine.open("big.dat"), 500 * BLOCK, BLOCK)
        assert trio.current_time() - began < 1.5 * engine.workers.first_byte_s


def test_what_comes_along_is_bounded() -> None:
    """Not from a data set of small files, not more than the limits, smallest first."""

    def metas(count: int, size: int) -> list[ObjectMeta]:
        return [ObjectMeta(ObjectId(f"{n}.json", "e"), size, 0) for n in range(count)]

    assert companions_of("0.json", metas(COMPANIONS_MAX + 1, 10), MIB, 1000) == []
    assert len(companions_of("0.json", metas(COMPANIONS_MAX, 10), MIB, 1000)) == COMPANIONS_MAX - 1
    assert len(companions_of("9.json", metas(20, 8 * MIB), MIB, 1000)) == 4
    assert len(companions_of("9.json", metas(20, 10), MIB, 5)) == 5
    assert companions_of("9.json", metas(20, 8 * MIB + 1), MIB, 1000) == []


async def test_a_companion_that_was_opened_and_closed_meanwhile_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A reader that is done before its file's turn came leaves no plan behind."""
    async with open_engine(slots=512, capacity=8, guided=True) as engine:
        model(engine)
        for key in SMALL:
            file = engine.open(key)
            await engine.read(file, 0, 10)
            engine.close(file)
        await trio.sleep(5)
        assert not engine.prefetcher._active
        assert all(file.opens == 0 for file in engine.files._files.values())
