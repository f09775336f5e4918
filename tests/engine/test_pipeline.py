"""From shard to shard without a pause: connections are busy as long as there is work for them."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from tests.engine.simulated import BLOCK, Engine, open_engine, shard

SHARDS = 12


def put_model(engine: Engine, blocks: int) -> list[str]:
    """A model of numbered shards with an index."""
    keys = [f"model-{n:05d}-of-{SHARDS:05d}.safetensors" for n in range(1, SHARDS + 1)]
    for key in keys:
        engine.bucket.put_bytes(key, shard(blocks * BLOCK))
    index = {"weight_map": {key: key for key in keys}}
    engine.bucket.put_bytes("model.safetensors.index.json", json.dumps(index).encode())
    return keys


async def read_shard(engine: Engine, key: str, stay_open: bool) -> None:
    """Read one shard in order, as fast as it comes."""
    file = engine.open(key)
    for offset in range(0, file.meta.size, 2 * BLOCK):
        await engine.read(file, offset, 2 * BLOCK)
    if not stay_open:
        engine.close(file)


@pytest.mark.parametrize("stay_open", [False, True], ids=["closes", "keeps open"])
@pytest.mark.parametrize("blocks", [40, 100, 1000])
async def test_connections_never_idle_between_shards(
    autojump_clock: trio.testing.MockClock, blocks: int, stay_open: bool
) -> None:
    """Once half a shard was read, no connection rests while shards are left and there is room."""
    async with open_engine(slots=512, capacity=16, guided=True) as engine:
        keys = put_model(engine, blocks)
        size = blocks * BLOCK
        reserve = max(1, engine.workers.capacity // 8)
        in_the_end = 16 * 8 * BLOCK  # what all connections ask for at once
        idle: list[tuple[float, int]] = []

        async def watch() -> None:
            while engine.counters.bytes_fetched < SHARDS * size - 2 * in_the_end:
                await trio.sleep(0.0007)
                gauges = engine.slots.statistics()
                room = gauges["lead"] - gauges["unread"] > 8
                if engine.counters.bytes_read < size // 2:
                    continue  # whether it is a load shows once a quarter of a shard was read
                if room and engine.workers.idle > reserve:
                    idle.append((trio.current_time(), engine.workers.idle))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for key in keys:
                await read_shard(engine, key, stay_open)
        assert idle == []
        assert engine.counters.prefetch_wasted_bytes == 0
        assert engine.counters.bytes_fetched <= SHARDS * size + 10 * BLOCK  # and the index


async def test_a_model_that_was_dropped_flows_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A second load with nothing cached takes as long as the first, shards ahead included."""
    async with open_engine(slots=512, capacity=16, guided=True) as engine:
        keys = put_model(engine, 400)
        seconds = []
        for _ in range(3):
            began = trio.current_time()
            for key in keys:
                await read_shard(engine, key, stay_open=False)
            seconds.append(trio.current_time() - began)
            await trio.sleep(100)
        assert max(seconds[1:]) < 1.25 * seconds[0]
        assert engine.counters.bytes_fetched <= 3.03 * SHARDS * 400 * BLOCK


async def test_one_tensor_of_a_shard_stays_one_shard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A tool that reads one tensor and closes stops prefetch, and starts no other shard."""
    async with open_engine(slots=512, capacity=16, guided=True) as engine:
        keys = put_model(engine, 1000)
        file = engine.open(keys[0])
        await engine.read(file, 0, BLOCK)
        for block in range(500, 510):
            await engine.read(file, block * BLOCK, BLOCK)
        engine.close(file)
        under_way = engine.slots.statistics()["fetching"]
        before = engine.counters.bytes_fetched
        await trio.sleep(100)
        assert engine.counters.bytes_fetched - before <= under_way * BLOCK
        assert {key for key, _ in engine.bucket.log if key.endswith(".safetensors")} == {keys[0]}
