"""Every way of reading gives the same bytes as a plain directory."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mounts.conftest import BIG_BYTES, Twins

READER = """
import hashlib, os, random, sys
chance, fd = random.Random(int(sys.argv[2])), os.open(sys.argv[1], os.O_RDONLY)
size, digest = os.fstat(fd).st_size, hashlib.sha256()
for _ in range(60):
    offset = chance.randrange(size)
    digest.update(os.pread(fd, chance.randrange(1, 300_000), offset))
print(digest.hexdigest())
"""


def both(twins: Twins, name: str) -> tuple[Path, Path]:
    """The file on the mount and the plain one."""
    return twins.mounted.path / name, twins.plain / name


@pytest.mark.parametrize(
    "name", ["big.bin", "empty", "one", "page", "block", "block+1", "sub/deep/b.safetensors"]
)
def test_whole_files_are_equal(twins: Twins, name: str) -> None:
    """Files of every size read whole."""
    ours, theirs = both(twins, name)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_size == theirs.stat().st_size


def test_pread_at_random_offsets_by_32_threads(twins: Twins) -> None:
    """Any offset and length, from 32 threads on one descriptor."""
    ours, theirs = both(twins, "big.bin")
    want = theirs.read_bytes()
    fd = os.open(ours, os.O_RDONLY)

    def reads(seed: int) -> bool:
        chance = random.Random(seed)
        for _ in range(20):
            offset = chance.randrange(BIG_BYTES + 1000)
            size = chance.choice([1, 4096, 65_537, 1 << 20, 3 << 20])
            if os.pread(fd, size, offset) != want[offset : offset + size]:
                return False
        return True

    try:
        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(reads, range(32)))
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_mmap_forward_backward_and_at_random(twins: Twins, kind: str) -> None:
    """Page faults in any order see the same bytes."""
    ours, theirs = both(twins, "big.bin")
    want = theirs.read_bytes()
    flags = mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED
    chance = random.Random(3)
    with ours.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        pages = list(range(0, BIG_BYTES, 4096))
        for order in (pages[::-37], pages[::41], chance.sample(pages, 300)):
            assert all(mapping[at : at + 4096] == want[at : at + 4096] for at in order)
        assert mapping[:] == want
        mapping.close()


def test_o_direct_reads_are_equal(twins: Twins) -> None:
    """Reads past the page cache, aligned as O_DIRECT wants them, to the very end."""
    ours, theirs = both(twins, "big.bin")
    want = theirs.read_bytes()
    fd = os.open(ours, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4 << 20)
    try:
        for offset in (0, 4096, 7 << 20, (BIG_BYTES - 4096) // 4096 * 4096):
            for size in (4096, 1 << 20, 4 << 20):
                got = os.preadv(fd, [memoryview(buffer)[:size]], offset)
                assert buffer[:got] == want[offset : offset + size]
    finally:
        os.close(fd)


def test_processes_reading_at_once_agree(twins: Twins) -> None:
    """Four processes at random offsets see what four processes see in the plain directory."""
    ours, theirs = both(twins, "big.bin")

    def digests(path: Path) -> list[str]:
        command = [sys.executable, "-c", READER]
        readers = [
            subprocess.Popen([*command, str(path), str(seed)], stdout=subprocess.PIPE, text=True)
            for seed in range(4)
        ]
        return [reader.communicate(timeout=60)[0] for reader in readers]

    assert digests(ours) == digests(theirs)


def test_several_handles_interleave(twins: Twins) -> None:
    """Streams on several handles of one file, forward and backward, do not disturb each other."""
    ours, theirs = both(twins, "big.bin")
    want = theirs.read_bytes()
    step = 96 * 1024
    starts = list(range(0, BIG_BYTES, step))
    handles = [os.open(ours, os.O_RDONLY) for _ in range(3)]
    try:
        for i, start in enumerate(starts):
            third = starts[(i * 5) % len(starts)]
            for fd, at in zip(handles, (start, starts[-1 - i], third), strict=True):
                assert os.pread(fd, step, at) == want[at : at + step]
    finally:
        for fd in handles:
            os.close(fd)


def test_readers_in_other_ways_agree(twins: Twins) -> None:
    """sendfile, readv, lseek from both ends, cp and sha256sum."""
    ours, theirs = both(twins, "block+1")
    want = theirs.read_bytes()
    with ours.open("rb", buffering=0) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read(100) == want[-5:]
        pieces = [bytearray(3), bytearray(70_000)]
        assert os.preadv(file.fileno(), pieces, 11) == 70_003
        assert b"".join(pieces) == want[11 : 11 + 70_003]
    done = subprocess.run(
        ["sha256sum", str(ours)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[0] == hashlib.sha256(want).hexdigest()
