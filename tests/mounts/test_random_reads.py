"""What random reads fetch: the blocks they touch, and next to nothing besides."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
SIZE = 3072 * MIB
"""Sparse: it takes no disk, and a hundred reads in it are far apart."""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A directory with a large file of each kind, mounted."""
    directory = tmp_path_factory.mktemp("large")
    for name in ("opaque.dat", "data.bin", "small_reads.dat", "ordered.dat"):
        with (directory / name).open("wb") as file:
            file.truncate(SIZE)
    _put_shard(directory / "m-00001-of-00002.safetensors")
    _put_shard(directory / "m-00002-of-00002.safetensors")
    options = ("--memory", "256M")
    with open_mount(f"file://{directory}", *options) as mount:
        yield mount


def _put_shard(path: Path) -> None:
    data = SIZE - 8 - 96
    header = f'{{"w":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}'.ljust(96)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(SIZE)


def fetched_by(mounted: Mounted, name: str, reads: list[tuple[int, int]]) -> int:
    """Bytes fetched for these (offset, size) reads, until nothing is under way."""
    before = mounted.counters()["bytes_fetched"]
    fd = os.open(mounted.path / name, os.O_RDONLY)
    try:
        for offset, size in reads:
            assert len(os.pread(fd, size, offset)) == size
    finally:
        os.close(fd)
    wait_until(lambda: mounted.status()["arena"]["fetching"] == 0)
    return mounted.counters()["bytes_fetched"] - before


@pytest.mark.parametrize("align", [MIB, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("name", ["opaque.dat", "data.bin"])
def test_random_reads_of_a_mebibyte_fetch_at_most_twice_that(
    mounted: Mounted, name: str, align: int
) -> None:
    """Any offset: the two blocks a read lies in, and hardly any that nobody asked for."""
    chance = random.Random(align)
    reads = [(chance.randrange(SIZE - MIB) // align * align, MIB) for _ in range(60)]
    assert fetched_by(mounted, name, reads) <= 2.1 * 60 * MIB


def test_small_random_reads_fetch_the_blocks_they_touch(mounted: Mounted) -> None:
    """A read of 64 KiB to 1 MiB costs its blocks; prefetch adds less than a tenth."""
    chance = random.Random(3)
    reads = []
    for _ in range(60):
        size = chance.randrange(64 << 10, MIB)
        reads.append((chance.randrange(SIZE - size), size))
    touched = {
        block for at, size in reads for block in range(at // MIB, (at + size - 1) // MIB + 1)
    }
    assert fetched_by(mounted, "small_reads.dat", reads) <= 1.1 * len(touched) * MIB


def test_one_tensor_of_a_shard_stops_when_it_is_closed(mounted: Mounted) -> None:
    """Reading a tensor starts the shard; closing it ends that, and brings no other shard."""
    reads = [(0, 4096), *((1000 * MIB + i * MIB, MIB) for i in range(4))]
    budget = mounted.status()["arena"]["lead"] * MIB
    assert fetched_by(mounted, "m-00001-of-00002.safetensors", reads) <= budget + 8 * MIB
