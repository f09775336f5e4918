"""Reader, fetcher and prefetcher together, on a virtual clock."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from fusefs.errors import (
    AccessDenied,
    CorruptData,
    ObjectChanged,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
)
from fusefs.objects import Extent
from tests.conftest import ExpectedWarnings
from tests.engine.simulated import BLOCK, Engine, content, open_engine

MIB = 1 << 20


async def read_all(engine: Engine, key: str, step: int = 2 * BLOCK) -> bytes:
    """Read a file from start to end through one handle."""
    file = engine.open(key)
    file.inspected, file.data_start = True, 100
    data = b""
    while piece := await engine.read(file, len(data), step):
        data += piece
    engine.files.closed(file)
    engine.prefetcher.closed(file)
    return data


async def test_reads_are_exact_at_every_edge(autojump_clock: trio.testing.MockClock) -> None:
    """Any offset and size gives exactly the object's bytes, cut at its end."""
    async with open_engine() as engine:
        size = 10 * BLOCK + 123
        engine.bucket.put("a.bin", size)
        want = content("a.bin", 1, size)
        file = engine.open("a.bin")
        for offset in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7, size - 1, size, size + 5):
            for length in (1, 100, BLOCK, BLOCK + 1, 3 * BLOCK, size):
                assert await engine.read(file, offset, length) == want[offset : offset + length]


async def test_eight_readers_cost_one_download(autojump_clock: trio.testing.MockClock) -> None:
    """Single flight: tensor-parallel ranks that read the same blocks at once share each fetch."""
    async with open_engine(slots=256) as engine:
        engine.bucket.put("a.safetensors", 100 * BLOCK)
        engine.open("a.safetensors").direct_opens = 8
        want = content("a.safetensors", 1, 100 * BLOCK)
        results: list[bytes] = []

        async def rank() -> None:
            results.append(await read_all(engine, "a.safetensors"))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(rank)
        assert results == [want] * 8
        assert engine.counters.bytes_fetched == 100 * BLOCK
        assert engine.counters.joins > 0


async def test_sequential_reading_is_prefetched_in_parallel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A sequential reader waits for a few round trips, not for one per block."""
    async with open_engine(slots=256, capacity=16) as engine:
        engine.bucket.put("a.bin", 200 * BLOCK)
        began = trio.current_time()
        assert await read_all(engine, "a.bin", BLOCK) == content("a.bin", 1, 200 * BLOCK)
        one_at_a_time = 200 * (engine.workers.first_byte_s + engine.workers.block_s)
        assert trio.current_time() - began < one_at_a_time / 8
        assert engine.workers.busy_max > 8


async def test_a_file_larger_than_the_arena_streams_through_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The arena is recycled: memory stays bounded, nothing is fetched twice."""
    async with open_engine(slots=32) as engine:
        size = 1000 * BLOCK
        engine.bucket.put("big.safetensors", size)
        assert await read_all(engine, "big.safetensors") == content("big.safetensors", 1, size)
        assert engine.counters.bytes_fetched == size
        assert engine.counters.prefetch_wasted_bytes == 0


async def test_demand_does_not_queue_behind_prefetch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While a shard streams in, a read elsewhere costs about one round trip."""
    async with open_engine(slots=512, capacity=8) as engine:
        engine.bucket.put("a.bin", 2000 * BLOCK)
        engine.bucket.put("b.bin", 2000 * BLOCK)
        file = engine.open("a.bin")
        file.plan.want_whole(0)
        await engine.read(file, 0, BLOCK)
        other = engine.open("b.bin")
        began = trio.current_time()
        await engine.read(other, 1500 * BLOCK, BLOCK)
        assert trio.current_time() - began < 2 * (
            engine.workers.first_byte_s + engine.workers.block_s
        )


async def test_failures_are_retried_until_they_pass(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Unavailable, throttled, timed out and corrupt answers cost time, not the read."""
    async with open_engine() as engine:
        engine.bucket.put("a.bin", BLOCK)
        engine.bucket.faults.extend(
            [
                StoreUnavailable("reset"),
                StoreThrottled("slow down", 3.0),
                StoreTimeout("silence"),
                CorruptData("wrong range"),
            ]
        )
        file = engine.open("a.bin")
        began = trio.current_time()
        assert await engine.read(file, 0, BLOCK) == content("a.bin", 1, BLOCK)
        assert trio.current_time() - began >= 3.0
        assert engine.counters.fetch_errors == 4


async def test_a_store_that_stays_away_ends_in_the_documented_errno(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Past the deadline a read fails with ETIMEDOUT, and the engine is as before."""
    async with open_engine(deadline_s=30.0) as engine:
        engine.bucket.put("a.bin", BLOCK)
        engine.bucket.faults.extend([StoreUnavailable("gone")] * 1000)
        file = engine.open("a.bin")
        began = trio.current_time()
        with pytest.raises(StoreTimeout) as caught:
            await engine.read(file, 0, BLOCK)
        assert caught.value.errno == errno.ETIMEDOUT
        assert trio.current_time() - began == pytest.approx(30.0, abs=1.0)
        engine.bucket.faults.clear()
        assert await engine.read(file, 0, BLOCK) == content("a.bin", 1, BLOCK)
        assert engine.counters.read_errors == 1


async def test_what_cannot_be_retried_fails_at_once(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """A refusal reaches the reader after one request, and the next read asks again."""
    async with open_engine() as engine:
        engine.bucket.put("a.bin", BLOCK)
        engine.bucket.faults.append(AccessDenied("no"))
        expect_warning("fetching a.bin failed: no")
        file = engine.open("a.bin")
        with pytest.raises(AccessDenied):
            await engine.read(file, 0, BLOCK)
        assert await engine.read(file, 0, BLOCK) == content("a.bin", 1, BLOCK)


async def test_an_overwritten_object_is_estale_and_never_mixed(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """After an overwrite a handle gets old bytes or ESTALE; a new open gets the new ones."""
    async with open_engine() as engine:
        size = 3000 * BLOCK
        engine.bucket.put("a.bin", size)
        expect_warning("a.bin changed in the store")
        expect_warning("fetching a.bin failed")
        old = content("a.bin", 1, size)
        file = engine.open("a.bin")
        assert await engine.read(file, 0, BLOCK) == old[:BLOCK]
        engine.bucket.put("a.bin", size)
        stale = 0
        for offset in range(0, size, 100 * BLOCK):
            try:
                piece = await engine.read(file, offset, BLOCK)
            except ObjectChanged:
                stale += 1
            else:
                assert piece == old[offset : offset + BLOCK]
        assert stale > 0 and engine.changed == [file]
        assert await read_all(engine, "a.bin") == content("a.bin", 2, size)


async def test_a_dead_worker_costs_a_retry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Blocks that were in a worker that died are fetched again; those that had landed are kept."""
    async with open_engine() as engine:
        size = 60 * BLOCK
        engine.bucket.put("a.bin", size)
        engine.workers.lose_next = 3
        assert await read_all(engine, "a.bin") == content("a.bin", 1, size)
        assert engine.counters.retries > 0


async def test_random_reads_fetch_little_more_than_they_need(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Far-apart reads in a big opaque file fetch their blocks and nothing ahead."""
    async with open_engine(slots=256) as engine:
        engine.bucket.put("a.bin", 40 * MIB)
        want = content("a.bin", 1, 40 * MIB)
        file = engine.open("a.bin")
        for mebibyte in (39, 1, 20):
            offset = mebibyte * MIB
            assert await engine.read(file, offset, BLOCK) == want[offset : offset + BLOCK]
        assert engine.counters.bytes_fetched == 3 * BLOCK


async def test_many_waiting_reads_do_not_starve_each_other_in_a_tiny_arena(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A hundred reads across block borders finish although only a few blocks fit at once."""
    async with open_engine(slots=4, capacity=4) as engine:
        size = 400 * BLOCK
        engine.bucket.put("a.bin", size)
        want = content("a.bin", 1, size)
        file = engine.open("a.bin")
        right = []

        async def one(number: int) -> None:
            offset = (number * 37 % 398) * BLOCK + BLOCK // 2
            right.append(await engine.read(file, offset, BLOCK) == want[offset : offset + BLOCK])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(one, number)
        assert right == [True] * 100


async def test_reading_a_header_does_not_start_the_shard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A look at the head of a shard costs the head; a touch behind it brings the whole file."""
    async with open_engine(slots=512, capacity=16) as engine:
        engine.bucket.put("m.safetensors", 100 * BLOCK)
        file = engine.open("m.safetensors")
        file.inspected, file.data_start = True, 100
        await engine.read(file, 0, BLOCK)
        await trio.sleep(1)
        assert engine.counters.bytes_fetched == BLOCK
        await engine.read(file, 50 * BLOCK, BLOCK)
        await trio.sleep(1)
        assert engine.counters.bytes_fetched == 100 * BLOCK


async def test_prefetch_that_fails_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    """A prefetch nobody waits for is given up without an error; demand fetches those blocks."""
    async with open_engine(slots=512) as engine:
        engine.bucket.put("a.bin", 64 * BLOCK)
        file = engine.open("a.bin")
        await engine.read(file, 0, BLOCK)
        engine.bucket.faults.extend([StoreUnavailable("flaky")] * 40)
        await engine.read(file, 0, BLOCK)
        await trio.sleep(120)
        engine.bucket.faults.clear()
        assert await read_all(engine, "a.bin") == content("a.bin", 1, 64 * BLOCK)
        assert engine.counters.read_errors == 0


async def test_unread_prefetch_makes_room_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An abandoned load does not keep the arena from the next one."""
    async with open_engine(slots=64) as engine:
        engine.bucket.put("a.safetensors", 500 * BLOCK)
        engine.bucket.put("b.safetensors", 500 * BLOCK)
        first = engine.open("a.safetensors")
        first.inspected, first.data_start = True, 100
        await engine.read(first, 100 * BLOCK, BLOCK)
        engine.files.closed(first)
        engine.prefetcher.closed(first)
        await trio.sleep(60)
        assert await read_all(engine, "b.safetensors") == content("b.safetensors", 1, 500 * BLOCK)
        assert engine.counters.prefetch_wasted_bytes > 0
        assert engine.slots.statistics()["fetching"] == 0


async def test_requests_carry_the_version_and_stay_inside_the_object(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No request asks beyond the end of the object, or for nothing."""
    async with open_engine() as engine:
        size = 17 * BLOCK + 1
        engine.bucket.put("a.bin", size)
        await read_all(engine, "a.bin")
        assert all(0 <= e.start < e.stop <= size for _, e in engine.bucket.log)
        assert Extent(17 * BLOCK, size).stop == max(e.stop for _, e in engine.bucket.log)
