"""Each kind of file is fetched as its loaders read it, and costs nothing when it is only looked at.

Blocks are 4 KiB here, a head is four of them, and a MiB is 256.
"""

from __future__ import annotations

import trio
import trio.testing

from tests.engine.simulated import BLOCK, Engine, open_engine, shard

MIB = 1 << 20
BLOCKS = 3000
SIZE = BLOCKS * BLOCK
ZIP = b"PK\x03\x04".ljust(SIZE, b"z")
GGUF = b"GGUF".ljust(SIZE, b"g")


def fetched(engine: Engine) -> int:
    """Blocks that came from the store."""
    return engine.counters.bytes_fetched // BLOCK


async def test_an_archive_brings_its_tail_with_its_first_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """torch.load looks at the magic number, then at the directory: one round trip for both."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put_bytes("m.pt", ZIP)
        file = engine.open("m.pt")
        assert await engine.read(file, 0, BLOCK) == ZIP[:BLOCK]
        began = trio.current_time()
        await engine.read(file, SIZE - BLOCK, BLOCK)
        assert trio.current_time() - began < 0.02 + engine.workers.first_byte_s
        await trio.sleep(1)
        assert MIB <= fetched(engine) * BLOCK <= MIB + 6 * BLOCK


async def test_the_first_touch_of_its_data_starts_an_archive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Behind head and before tail lie the tensors: all of them are wanted then."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put_bytes("m.bin", ZIP)
        file = engine.open("m.bin")
        for offset in (0, SIZE - BLOCK, 100 * BLOCK):
            await engine.read(file, offset, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) == BLOCKS


async def test_a_bin_that_is_no_archive_is_opaque(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A data set called .bin, read at random, is not downloaded: the tail is all it costs."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put("data.bin", SIZE)
        file = engine.open("data.bin")
        for block in (0, 2000, 500, 1500, 1000):
            await engine.read(file, block * BLOCK, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) <= 2 * 5 + MIB // BLOCK


async def test_metadata_of_gguf_costs_little_more_than_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Tools that read the head in small reads do not start the download."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put_bytes("m.gguf", GGUF)
        file = engine.open("m.gguf")
        for offset in range(0, 10 * BLOCK, BLOCK // 2):
            await engine.read(file, offset, BLOCK // 2)
        await trio.sleep(2)
        assert fetched(engine) <= 50


async def test_the_first_touch_of_its_data_starts_a_gguf(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A jump over the rest of the metadata is a touch of tensors."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put_bytes("m.gguf", GGUF)
        file = engine.open("m.gguf")
        for block in (0, 1, 2, 2000):
            await engine.read(file, block * BLOCK, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) == BLOCKS


async def test_headers_of_shards_cost_the_headers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """All headers of a model are read, in one piece or in many: that is all that is fetched."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        files = [f"m-{n}-of-8.safetensors" for n in range(8)]
        for key in files:
            engine.bucket.put_bytes(key, shard(SIZE))
            await engine.read(engine.open(key), 0, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) == len(files)


async def test_a_long_header_is_read_ahead_but_its_data_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A header longer than the kernel's readahead streams in, and ends where the data begins."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        header = 100 * BLOCK
        engine.bucket.put_bytes("m.safetensors", shard(SIZE, header - 8))
        file = engine.open("m.safetensors")
        for offset in range(0, header, BLOCK):
            await engine.read(file, offset, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) == 100
        await engine.read(file, header, BLOCK)
        await trio.sleep(2)
        assert fetched(engine) == BLOCKS


async def test_many_files_opened_at_once_are_all_planned(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """More shards than questions can wait: those that did not fit are asked about later."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        data = shard(20 * BLOCK)
        files = []
        for number in range(1100):
            engine.bucket.put_bytes(f"{number}.safetensors", data)
            files.append(engine.open(f"{number}.safetensors"))
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(engine.read, file, 0, BLOCK)
        await trio.sleep(60)
        last = files[-1]
        for block in (10, 11):
            await engine.read(last, block * BLOCK, BLOCK)
            await trio.sleep(2)
        assert (
            last.started
            and len(last.blocks)
            + sum(block in last.plan.consumed for block in range(20) if not last.has(block))
            == 20
        )
