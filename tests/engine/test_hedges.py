"""Late requests get a second one; whoever is first serves, whoever is last harms nobody."""

from __future__ import annotations

import trio
import trio.testing

from fusefs.engine.blocks import File
from fusefs.errors import FusefsError, StoreUnavailable
from fusefs.policy.hedging import FREE
from tests.engine.simulated import BLOCK, Engine, content, open_engine

SIZE = 64 * BLOCK
LATE_S = 20.0
SOON_S = 2.5
"""A hedge starts after two seconds here: no request has ended that could say what is normal."""


async def read_one(engine: Engine, file: File, block: int = 5) -> None:
    """Read one block in the middle and check it."""
    key = file.meta.id.key
    want = engine.bucket.objects[key][1][block * BLOCK : (block + 1) * BLOCK]
    assert await engine.read(file, block * BLOCK, BLOCK) == want


def begin(engine: Engine, delays: list[float], faults: list[FusefsError | None]) -> File:
    """A file of which the next requests are late, or fail, in turn (as they are answered)."""
    engine.bucket.put("a.bin", 10_000 * BLOCK)
    engine.workers.delays.extend(delays)
    engine.bucket.faults.extend(faults)
    return engine.open("a.bin")


async def settle(engine: Engine) -> None:
    """Let everything end; nothing may be left in flight, and nothing without an owner."""
    await trio.sleep(100)
    assert engine.workers.busy == 0
    assert engine.slots.statistics()["fetching"] == 0
    assert not any(block and block.spare for block in engine.slots._owners)


async def test_a_late_answer_is_overtaken(autojump_clock: trio.testing.MockClock) -> None:
    """The reader waits for the second request only; what came twice is counted twice."""
    async with open_engine() as engine:
        file = begin(engine, [LATE_S], [])
        began = trio.current_time()
        await read_one(engine, file)
        assert trio.current_time() - began < SOON_S
        assert (engine.counters.hedges, engine.counters.hedges_won) == (1, 1)
        assert engine.counters.bytes_fetched == BLOCK
        await settle(engine)
        assert engine.counters.bytes_fetched == 2 * BLOCK
        assert engine.counters.requests_read == 2
        await read_one(engine, file)
        assert engine.counters.requests_read == 2


async def test_a_loser_writes_where_it_harms_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Until the late request has ended its slots belong to nobody else."""
    async with open_engine(slots=16) as engine:
        file = begin(engine, [LATE_S], [])
        await read_one(engine, file)
        assert sum(bool(b and b.spare) for b in engine.slots._owners) == 1
        for turn in range(300):
            await read_one(engine, file, 20 + turn * 7 % 500)
            await trio.sleep(0.1)
        await settle(engine)
        for block in range(20, 36):
            await read_one(engine, file, block)


async def test_a_late_request_that_fails_after_it_lost_is_nobodys_trouble(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No retry, no error: its blocks are there."""
    async with open_engine() as engine:
        file = begin(engine, [LATE_S], [None, StoreUnavailable("reset")])
        await read_one(engine, file)
        await settle(engine)
        assert engine.counters.fetch_errors == 1
        assert engine.counters.retries == 0
        await read_one(engine, file)
        assert engine.counters.requests_read == 2


async def test_a_late_request_that_fails_first_leaves_its_blocks_to_the_hedge(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The hedge goes on alone; nothing is asked a third time."""
    async with open_engine() as engine:
        file = begin(engine, [2.5, 1.5], [StoreUnavailable("reset")])
        began = trio.current_time()
        await read_one(engine, file)
        assert 3.5 < trio.current_time() - began < 4.0
        await settle(engine)
        assert engine.counters.retries == 0
        assert engine.counters.requests_read == 2


async def test_a_hedge_that_fails_leaves_things_as_they_were(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The late request still serves; the failed hedge is not retried, nor made again at once."""
    async with open_engine() as engine:
        file = begin(engine, [3.0], [StoreUnavailable("reset")])
        began = trio.current_time()
        await read_one(engine, file)
        assert 3.0 < trio.current_time() - began < 3.5
        assert engine.counters.hedges == 1
        assert engine.counters.hedges_won == 0
        assert engine.counters.retries == 0
        await settle(engine)


async def test_if_both_fail_it_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """Whichever fails first: the last one's failure is what leads to a retry."""
    for delays in ([2.5, 1.0], [10.0, 0.0]):
        async with open_engine() as engine:
            file = begin(engine, delays, [StoreUnavailable("reset"), StoreUnavailable("again")])
            engine.workers.first_byte_s = 0.5
            await read_one(engine, file)
            assert engine.counters.retries >= 1
            assert engine.counters.read_errors == 0
            await settle(engine)


async def test_a_worker_that_dies_with_a_late_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Lost is a failure like others: the hedge serves."""
    async with open_engine() as engine:
        file = begin(engine, [2.5, 1.5], [])
        engine.workers.lose_next = 1
        await read_one(engine, file)
        assert engine.counters.retries == 0
        await settle(engine)


async def test_a_run_may_be_won_in_part(autojump_clock: trio.testing.MockClock) -> None:
    """Blocks that landed before are not fetched twice; each block is served by who has it first."""
    async with open_engine(slots=256) as engine:
        engine.bucket.put("a.bin", SIZE)
        file = engine.open("a.bin")
        engine.workers.block_s = 0.6  # eight blocks take 4.8 s, and the hedge begins after 2 s
        began = trio.current_time()
        want = content("a.bin", 1, SIZE)
        assert await engine.read(file, 0, 8 * BLOCK) == want[: 8 * BLOCK]
        assert trio.current_time() - began < 5.0
        assert engine.counters.hedges >= 1
        await settle(engine)
        twice = engine.counters.bytes_fetched - SIZE
        assert 0 < twice < engine.counters.hedges * 8 * BLOCK
        assert await engine.read(file, 0, SIZE) == want


async def test_a_store_that_is_slow_as_a_whole_gets_few_hedges(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """At most one request in twenty and a handful, even if every one is late."""
    async with open_engine(slots=256) as engine:
        file = begin(engine, [], [])
        for turn in range(200):
            engine.workers.delays.append(0.0 if turn % 2 else LATE_S)
            await read_one(engine, file, turn * 40)
        counters = engine.counters
        assert counters.hedges >= FREE
        assert counters.hedges <= FREE + counters.requests_read / 20
        await settle(engine)


async def test_what_nobody_waits_for_is_not_hedged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A late prefetch costs one request."""
    async with open_engine(slots=512, capacity=16) as engine:
        engine.bucket.put("m.safetensors", 100 * BLOCK)
        file = engine.open("m.safetensors")
        file.inspected, file.data_start = True, 100
        await engine.read(file, 0, BLOCK)
        engine.workers.delays.extend([0.0, *[LATE_S] * 20])
        await engine.read(file, 50 * BLOCK, BLOCK)
        await trio.sleep(10 * LATE_S)
        assert engine.counters.bytes_fetched == 100 * BLOCK
        assert engine.counters.hedges == 0
