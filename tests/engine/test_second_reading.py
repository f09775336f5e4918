"""Files read once more, after the kernel let go of some of their pages or of all."""

from __future__ import annotations

import trio
import trio.testing

from tests.engine.simulated import BLOCK, Engine, content, open_engine
from tests.engine.test_engine import read_all

BLOCKS = 1000


async def read_whole_once(engine: Engine, *keys: str) -> float:
    """Read these shards to their ends, one after the other; how long it took."""
    began = trio.current_time()
    for key in keys:
        assert await read_all(engine, key) == content(key, 1, BLOCKS * BLOCK)
    return trio.current_time() - began


async def test_a_few_pages_dropped_cost_a_few_blocks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A second open whose pages are mostly still cached does not download the shard."""
    async with open_engine(slots=64, capacity=8) as engine:
        engine.bucket.put("m.safetensors", BLOCKS * BLOCK)
        await read_whole_once(engine, "m.safetensors")
        await trio.sleep(10)
        before = engine.counters.bytes_fetched
        file = engine.open("m.safetensors")
        dropped = [40, 41, 42, 200, 300, 301, 600]
        for block in dropped:
            await engine.read(file, block * BLOCK, BLOCK)
        await trio.sleep(10)
        fetched = engine.counters.bytes_fetched - before
        assert len(dropped) * BLOCK <= fetched <= 2 * len(dropped) * BLOCK


async def test_a_second_pass_with_everything_dropped_is_as_fast(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The lead is back within a few round trips, and nothing is fetched twice."""
    async with open_engine(slots=256, capacity=16) as engine:
        engine.bucket.put("m.safetensors", BLOCKS * BLOCK)
        first_s = await read_whole_once(engine, "m.safetensors")
        await trio.sleep(10)
        second_s = await read_whole_once(engine, "m.safetensors")
        assert second_s < first_s + 12 * engine.workers.first_byte_s
        assert engine.counters.bytes_fetched <= 2 * BLOCKS * BLOCK
        assert engine.counters.prefetch_wasted_bytes == 0


async def test_a_replaced_object_is_not_taken_for_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What is remembered belongs to one version: the next one is loaded like any new file."""
    async with open_engine(slots=256, capacity=16) as engine:
        engine.bucket.put("m.safetensors", BLOCKS * BLOCK)
        await read_whole_once(engine, "m.safetensors")
        engine.bucket.put("m.safetensors", BLOCKS * BLOCK)
        assert not engine.open("m.safetensors").plan.consumed.known()


async def test_what_is_remembered_of_closed_files_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Thousands of files opened, read and closed leave a bounded number behind."""
    async with open_engine(slots=16, capacity=4) as engine:
        for number in range(1200):
            key = f"{number}.dat"
            engine.bucket.put(key, 10)
            file = engine.open(key)
            await engine.read(file, 0, 10)
            engine.files.closed(file)
            engine.prefetcher.closed(file)
        assert len(engine.files) <= 16
        assert len(engine.files._recent) == 1024
