"""Readers that need no torch: whole files, random pieces, first bytes, names, small files.

Each takes a job and returns what `job.told` makes of it. What is compared with the originals is
what the application got, not what a second read would give.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

from tests.bench.job import SAMPLE_BYTES, Job, Watch, same, told

READ_BYTES = 1 << 20
"""What `cp`, `cat` and Python's own copy loops ask for, within a factor of four."""
RANDOM_THREADS = 4
"""One thread shows the latency of the link and nothing else; a data loader has a few."""
RANDOM_READS = 16
"""Of each thread: 64 MiB in all."""
PAGE_BYTES = 4096


def cold_read(job: Job) -> dict[str, Any]:
    """Read every file in turn from start to end, one thread, into one buffer.

    Of each piece that arrived some bytes are kept and compared with the originals afterwards.
    """
    buffer = bytearray(READ_BYTES)
    kept: list[tuple[str, int, bytes]] = []
    sizes: dict[str, int] = {}
    with Watch() as watch:
        for name, path in zip(job.names, job.files, strict=True):
            fd = os.open(path, os.O_RDONLY)
            offset = 0
            while count := os.readv(fd, [buffer]):
                at = (offset // READ_BYTES * 4093) % max(1, count - SAMPLE_BYTES)
                kept.append((name, offset + at, bytes(buffer[at : min(at + SAMPLE_BYTES, count)])))
                offset += count
            os.close(fd)
            sizes[name] = offset
    wrong = [
        f"{name}: other bytes at {at}" for name, at, got in kept if not _is(job, name, at, got)
    ]
    wrong += [
        f"{name}: {size} bytes arrived"
        for name, size in sizes.items()
        if size != job.original(name).stat().st_size
    ]
    return told(watch, sum(sizes.values()), wrong)


def random_reads(job: Job) -> dict[str, Any]:
    """Read pieces of the first file that do not overlap, in random order, several threads."""
    name = job.names[0]
    pieces = job.original(name).stat().st_size // READ_BYTES
    count = min(RANDOM_THREADS * RANDOM_READS, pieces)
    # Off the grid of any block: applications do not know it.
    chosen = [
        piece * READ_BYTES + PAGE_BYTES // 2
        for piece in random.Random(job.seed).sample(range(pieces - 1), k=count - 1)
    ]
    kept: list[tuple[int, bytes]] = []
    sizes: list[int] = []

    def read_some(fd: int, offsets: list[int]) -> None:
        for offset in offsets:
            piece = os.pread(fd, READ_BYTES, offset)
            kept.append((offset, piece[:SAMPLE_BYTES]))
            kept.append((offset + len(piece) - SAMPLE_BYTES, piece[-SAMPLE_BYTES:]))
            sizes.append(len(piece))

    with Watch() as watch:
        fd = os.open(job.files[0], os.O_RDONLY)
        threads = [
            threading.Thread(target=read_some, args=(fd, chosen[number::RANDOM_THREADS]))
            for number in range(RANDOM_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(fd)
    wrong = [f"other bytes at {at}" for at, got in kept if not _is(job, name, at, got)]
    if sizes != [READ_BYTES] * len(chosen):
        wrong.append(f"{sum(sizes)} bytes arrived of {len(chosen) * READ_BYTES}")
    return told(watch, sum(sizes), wrong)


def first_bytes(job: Job) -> dict[str, Any]:
    """Open each file and read a little, once: one byte, a page, and a page in the middle.

    The figure is that of the first file: its folder is not known yet either. The others are of
    files further on, as far as there are any.
    """
    asked = [("1_byte", 1, 0.0), ("next_4k_ms", PAGE_BYTES, 0.0), ("middle_4k_ms", PAGE_BYTES, 0.5)]
    watches: dict[str, Watch] = {}
    wrong: list[str] = []
    size = 0
    for (what, length, place), name in zip(asked, job.names, strict=False):
        offset = int(job.original(name).stat().st_size * place) // PAGE_BYTES * PAGE_BYTES
        with Watch() as watches[what]:
            fd = os.open(Path(job.directory) / name, os.O_RDONLY)
            got = os.pread(fd, length, offset)
        os.close(fd)
        size += len(got)
        if len(got) != length or not _is(job, name, offset, got):
            wrong.append(f"{name}: other bytes at {offset}")
    first = watches.pop("1_byte")
    return told(first, size, wrong, extra={name: w.seconds * 1e3 for name, w in watches.items()})


def list_names(job: Job) -> dict[str, Any]:
    """List the folder and stat every name, then once more."""
    watches = (Watch(), Watch())
    for watch in watches:
        if watch is watches[1]:
            job.again()
        with watch, os.scandir(job.directory) as entries:
            found = {entry.name: os.lstat(entry.path).st_size for entry in entries}
    expected = {path.name: path.stat().st_size for path in Path(job.originals).iterdir()}
    wrong = [
        f"{name}: size {found.get(name)}, not {expected.get(name)}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    return told(watches[0], 0, wrong, extra={"again_ms": watches[1].seconds * 1e3})


def small_files(job: Job) -> dict[str, Any]:
    """Open and read every file whole, then once more."""
    watches = (Watch(), Watch())
    wrong: list[str] = []
    for watch in watches:
        if watch is watches[1]:
            job.again()
        with watch:
            found = {path.name: path.read_bytes() for path in job.files}
        wrong += [
            f"{name}: other bytes"
            for name, content in found.items()
            if content != job.original(name).read_bytes()
        ]
    size = sum(len(content) for content in found.values())
    return told(watches[0], size, wrong, extra={"again_ms": watches[1].seconds * 1e3})


def _is(job: Job, name: str, offset: int, got: bytes) -> bool:
    return same(job.original(name), offset, got)
