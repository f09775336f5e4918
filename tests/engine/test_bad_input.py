"""Files that are not what their names say: right bytes, no stall, bounded memory, no download."""

from __future__ import annotations

import json
from typing import cast

import pytest
import trio
import trio.testing

from fusefs.policy.kinds import Kind
from loaderhint.header import HEADER_BYTES_MAX
from tests.engine.simulated import BLOCK, Engine, content, open_engine, shard

SIZE = 3000 * BLOCK
GOOD = shard(SIZE)


def headed(header: bytes, length: int | None = None) -> bytes:
    """A file of SIZE bytes that begins with this header, or claims to."""
    claimed = (len(header) if length is None else length).to_bytes(8, "little")
    return claimed + header + GOOD[8 + len(header) :]


def tensors(*offsets: tuple[int, int], names: str = "abcdef") -> bytes:
    """A header with one tensor of bytes at each of these places."""
    entries = [
        f'"{name}":' + json.dumps({"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]})
        for name, (a, b) in zip(names, offsets, strict=False)
    ]
    return ("{" + ",".join(entries) + "}").encode().ljust(192)


DATA = SIZE - 200
LIES = {
    "length of nothing": headed(b"", 0),
    "length beyond the file": headed(b"{}", SIZE),
    "length of all bits": b"\xff" * 8 + GOOD[8:],
    "length beyond any header": headed(b"{}", HEADER_BYTES_MAX + 1),
    "no JSON": headed(b"x" * 192),
    "half of a JSON": headed(b"{" * 192),
    "a hole": headed(tensors((0, 10), (20, DATA))),
    "an overlap": headed(tensors((0, 20), (10, DATA))),
    "the same name twice": headed(tensors((0, 10), (10, DATA), names="aa")),
    "tensors beyond the end": headed(tensors((0, DATA + 1))),
    "a file cut short": headed(tensors((0, 10 * DATA))),
    "no tensors": headed(b"{}".ljust(192)),
}


async def read_and_check(engine: Engine, key: str, data: bytes) -> None:
    """Read here and there, then all of it in order: exactly these bytes."""
    file = engine.open(key)
    size = len(data)
    with trio.fail_after(300):
        for offset in (0, size // 2, size - 1, 1, size // 3):
            if 0 <= offset < size:
                assert await engine.read(file, offset, 5000) == data[offset : offset + 5000]
        await trio.sleep(5)
        offset = 0
        while piece := await engine.read(file, offset, 2 * BLOCK):
            assert piece == data[offset : offset + 2 * BLOCK]
            offset += len(piece)
        assert offset == size
    engine.close(file)
    await trio.sleep(100)
    assert engine.slots.statistics()["fetching"] == 0
    assert engine.workers.busy == 0
    assert engine.counters.read_errors == 0


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
async def test_a_lying_header_makes_an_opaque_file(
    autojump_clock: trio.testing.MockClock, data: bytes
) -> None:
    """The bytes are right, the plan falls back, and a glance has not started a download."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        engine.bucket.put_bytes("m.safetensors", data)
        file = engine.open("m.safetensors")
        for block in (0, 1500):
            await engine.read(file, block * BLOCK, BLOCK)
            await trio.sleep(1)
        assert file.plan.kind is Kind.OPAQUE
        assert engine.counters.bytes_fetched <= 4 * BLOCK
        engine.close(file)
        await read_and_check(engine, "m.safetensors", data)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "bin", "pt", "json", "dat"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 10, BLOCK, BLOCK + 1])
async def test_tiny_files_of_every_kind(
    autojump_clock: trio.testing.MockClock, suffix: str, size: int
) -> None:
    """Too short for any header or directory: the bytes there are."""
    async with open_engine(slots=64, capacity=8, guided=True) as engine:
        key = f"tiny.{suffix}"
        engine.bucket.put(key, size)
        await read_and_check(engine, key, content(key, 1, size))


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"GGUF", b"\x80\x02}q", b"\x00" * 8])
@pytest.mark.parametrize("suffix", ["bin", "pt", "gguf", "safetensors"])
async def test_garbage_behind_a_magic_number(
    autojump_clock: trio.testing.MockClock, suffix: str, magic: bytes
) -> None:
    """Nothing of an archive or of metadata is believed but how it begins."""
    async with open_engine(slots=256, capacity=16, guided=True) as engine:
        data = magic + content("x", 1, SIZE)
        engine.bucket.put_bytes(f"m.{suffix}", data)
        await read_and_check(engine, f"m.{suffix}", data)


async def test_a_header_of_100000_tensors(autojump_clock: trio.testing.MockClock) -> None:
    """Too long to be parsed for where it ends: its length is believed, its data is found."""
    async with open_engine(slots=4096, capacity=512, guided=True) as engine:
        header = json.dumps(
            {
                f"model.layers.{n}.weight": {
                    "dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]
                }
                for n in range(100_000)
            }
        ).encode()  # fmt: skip
        data = len(header).to_bytes(8, "little") + header + bytes(100_000)
        engine.bucket.put_bytes("m.safetensors", data)
        await read_and_check(engine, "m.safetensors", data)
        file = engine.files.get(engine.bucket.meta("m.safetensors"))
        assert file.data_start == 8 + len(header)


async def test_a_header_of_100_megabytes_is_not_held_in_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The longest header there may be streams through a small arena."""
    async with open_engine(slots=256, capacity=16, guided=True) as engine:
        length = HEADER_BYTES_MAX
        data = length.to_bytes(8, "little") + b"{}".ljust(length) + bytes(100 * BLOCK)
        engine.bucket.put_bytes("m.safetensors", data)
        file = engine.open("m.safetensors")
        for offset in (0, 8 * BLOCK, 20_000 * BLOCK, length + 8):
            assert await engine.read(file, offset, BLOCK) == data[offset : offset + BLOCK]
        await trio.sleep(1)
        assert file.data_start == 8 + length
        assert engine.counters.read_errors == 0


class Zeros:
    """Stands for the bytes of an object that no memory could hold."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        return bytes(place.stop - place.start)


@pytest.mark.parametrize("suffix", ["dat", "safetensors", "bin", "gguf"])
async def test_a_sparse_object_of_200000_blocks(
    autojump_clock: trio.testing.MockClock, suffix: str
) -> None:
    """As many blocks as 200 GB have: random reads fetch what they touch, and nothing is slow."""
    async with open_engine(slots=256, capacity=16, guided=True) as engine:
        size = 200_000 * BLOCK
        engine.bucket.put_bytes(f"huge.{suffix}", cast(bytes, Zeros(size)))
        file = engine.open(f"huge.{suffix}")
        for number in range(200):
            offset = number * 7919 % 200_000 * BLOCK
            assert await engine.read(file, offset, BLOCK) == bytes(BLOCK)
        await trio.sleep(10)
        assert engine.counters.bytes_fetched <= (200 + 256 + 10) * BLOCK  # and a tail
        engine.close(file)
        assert len(engine.files._recent) <= 1


async def test_a_hundred_names_for_the_same_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An index full of names that do not exist, or are odd, plans nothing and breaks nothing."""
    async with open_engine(slots=512, capacity=16, guided=True) as engine:
        engine.bucket.put_bytes("a.safetensors", GOOD)
        odd = {"a": "a.safetensors", "b": "../../etc/passwd", "c": "", "d": "a.safetensors"}
        odd |= {str(n): f"gone-{n}.safetensors" for n in range(100)}
        index = json.dumps({"weight_map": odd}).encode()
        engine.bucket.put_bytes("m.safetensors.index.json", index)
        await read_and_check(engine, "a.safetensors", GOOD)
