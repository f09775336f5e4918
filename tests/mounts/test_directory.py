"""A mount of a directory that is slow for one stream reads it with many, and keeps one copy."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.objects import Extent
from fusefs.store.direct_read import PIECE_BYTES, PieceReader
from fusefs.store.posix import PosixStore
from tests.harness.mounted import open_mount
from tests.harness.throttled import Throttled, open_throttled

MIB = 1 << 20
SIZE = 96 * MIB + 4321
RATE_MB = 20
LATENCY_MS = 5.0
STREAMS = 8
KERNEL_TELLS = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 5)
"""Older kernels do not tell what is in the page cache."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one large file."""
    directory = tmp_path_factory.mktemp("files")
    dice = random.Random(7)
    with (directory / "weights").open("wb") as file:
        for start in range(0, SIZE, MIB):
            file.write(dice.randbytes(min(MIB, SIZE - start)))
    return directory


@pytest.fixture
def throttled(files: Path, tmp_path: Path) -> Iterator[Throttled]:
    """That directory, slow for each stream."""
    mountpoint = tmp_path / "slow"
    mountpoint.mkdir()
    with open_throttled(files, mountpoint, RATE_MB, LATENCY_MS) as mounted:
        yield mounted


def read(directory: Path, extent: Extent) -> bytes:
    """Read an extent through the store into aligned memory, as a worker does."""
    store = PosixStore(str(directory))
    size = -(-extent.size // mmap.PAGESIZE) * mmap.PAGESIZE
    with mmap.mmap(-1, size) as memory, memoryview(memory) as view:
        store.read_into(store.head("weights").id, extent, view[: extent.size])
        return bytes(view[: extent.size])


def cached(directory: Path, extent: Extent) -> bool:
    """Whether all of the extent is in the page cache of that directory, by mincore(2)."""
    size = extent.size
    with (directory / "weights").open("rb") as file:
        # Private, so that it may be writable, which ctypes wants; no page of it is touched.
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=extent.start)
    with memory:
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(memory)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), there
        )
        del start
    assert failed == 0, os.strerror(ctypes.get_errno())
    return all(page & 1 for page in there)


def expected(files: Path, extent: Extent) -> bytes:
    """The bytes as they were written."""
    with (files / "weights").open("rb") as file:
        file.seek(extent.start)
        return file.read(extent.size)


def test_one_reader_becomes_many_streams(files: Path, throttled: Throttled) -> None:
    """A program that reads from the start to the end has at least 8 streams at work for it."""
    with open_mount(f"file://{throttled.path}") as mounted:
        assert (mounted.path / "weights").read_bytes() == (files / "weights").read_bytes()
    traffic = throttled.traffic()
    assert traffic.files_max >= STREAMS
    assert traffic.requests_max >= STREAMS
    assert SIZE <= traffic.bytes <= SIZE + MIB  # all of it once, but for the edge of the tail
    assert not cached(throttled.path, Extent(0, MIB))  # no second copy stayed behind


EXTENTS = {
    "whole blocks": Extent(0, 2 * MIB),
    "tail": Extent(SIZE - 4321 - MIB, SIZE),
    "odd size": Extent(MIB, 2 * MIB + 17),
}


@pytest.mark.parametrize("name", EXTENTS)
def test_large_extents_leave_no_copy(name: str, files: Path, throttled: Throttled) -> None:
    """A large extent comes in large requests and is not in the source's page cache afterwards."""
    extent = EXTENTS[name]
    assert read(throttled.path, extent) == expected(files, extent)
    assert not cached(throttled.path, Extent(extent.start, extent.start + 4096))
    assert throttled.traffic().requests <= -(-extent.size // MIB)


def test_what_is_cached_is_not_fetched_again(files: Path, throttled: Throttled) -> None:
    """What somebody has in the page cache comes from there, and stays there."""
    extent = Extent(0, 2 * MIB)
    with (throttled.path / "weights").open("rb", buffering=0) as file:
        assert len(file.read(extent.stop)) == extent.size
    throttled.traffic()
    assert read(throttled.path, extent) == expected(files, extent)
    assert throttled.traffic().requests == (0 if KERNEL_TELLS else 2)
    assert cached(throttled.path, extent)


def test_small_extents_are_cached(files: Path, throttled: Throttled) -> None:
    """Headers and indexes, read again and again, come from the page cache the second time."""
    extent = Extent(100, 8292)
    for _ in range(2):
        assert read(throttled.path, extent) == expected(files, extent)
    assert throttled.traffic().bytes < MIB
    read(throttled.path, extent)
    assert throttled.traffic().requests == 0


def test_an_odd_start(files: Path, throttled: Throttled) -> None:
    """A large extent that begins within a page is read through the page cache and dropped."""
    extent = Extent(1000, 1000 + MIB)
    assert read(throttled.path, extent) == expected(files, extent)
    assert not cached(throttled.path, Extent(0, MIB))


def test_who_refuses_o_direct_is_read_otherwise(files: Path, tmp_path: Path) -> None:
    """A file system that says EINVAL to a direct read is read by way of the page cache."""
    with open_throttled(files, tmp_path, RATE_MB, LATENCY_MS, refuse_direct=True) as throttled:
        extent = Extent(0, 3 * MIB)
        assert read(throttled.path, extent) == expected(files, extent)
        assert not cached(throttled.path, Extent(0, MIB))
        assert not cached(throttled.path, Extent(2 * MIB, 3 * MIB))


def test_who_has_no_o_direct_is_read_otherwise() -> None:
    """A file that does not even take the flag (procfs) is read in the usual way."""
    path = "/proc/kallsyms"
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = PieceReader(fd, Extent(0, PIECE_BYTES))
        piece = bytearray(4096)
        count = reader.read(memoryview(piece), 0)
    finally:
        os.close(fd)
    assert count > 0
    assert bytes(piece[:count]) == Path(path).read_bytes()[:count]
