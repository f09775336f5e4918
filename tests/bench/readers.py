"""What an application does to the mount, timed: `… readers READER DIRECTORY ORIGINALS NAME…`.

A child process of its own, so that a hung mount can be given up. Imports and the check of what
arrived are outside the clock; the first open is inside. Prints a JSON result.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

READ_BYTES = 1 << 20
"""What `cp`, `cat` and Python's own copy loops ask for, within a factor of four."""
SAMPLE_BYTES = 256


def cold_read(directory: Path, originals: Path, names: list[str]) -> dict[str, object]:
    """Read every file in turn from start to end, one thread, into one buffer.

    Of each piece that arrived some bytes are kept and compared with the originals afterwards, so
    that what is checked is what the application got, not what a second read would give.
    """
    buffer = bytearray(READ_BYTES)
    kept: list[tuple[str, int, bytes]] = []
    total = 0
    start = time.monotonic()
    for name in names:
        fd = os.open(directory / name, os.O_RDONLY)
        offset = 0
        while count := os.readv(fd, [buffer]):
            at = (offset // READ_BYTES * 4093) % max(1, count - SAMPLE_BYTES)
            kept.append((name, offset + at, bytes(buffer[at : min(at + SAMPLE_BYTES, count)])))
            offset += count
        os.close(fd)
        total += offset
    seconds = time.monotonic() - start
    wrong = [
        f"{name}: other bytes at {offset}"
        for name, offset, sample in kept
        if _original(originals / name, offset, len(sample)) != sample
    ]
    return {"seconds": seconds, "bytes": total, "wrong": wrong[:5]}


def mmap_load(directory: Path, originals: Path, names: list[str]) -> dict[str, object]:
    """Load every tensor as a loader does: safetensors maps the file, each tensor is copied out.

    All tensors are kept, as a model would, and compared with the originals afterwards.
    """
    # Here: the import takes a second, and the other scenarios do without.
    import torch
    from safetensors import safe_open

    tensors: dict[tuple[str, str], torch.Tensor] = {}
    start = time.monotonic()
    for name in names:
        with safe_open(directory / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[name, key] = file.get_tensor(key).clone()
    seconds = time.monotonic() - start
    wrong = []
    for name in names:
        with safe_open(originals / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                original = file.get_tensor(key).view(torch.int16)
                if not torch.equal(tensors[name, key].view(torch.int16), original):
                    wrong.append(f"{name}: other values in {key}")
    total = sum((originals / name).stat().st_size for name in names)
    return {"seconds": seconds, "bytes": total, "wrong": wrong[:5]}


def _original(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


READERS: dict[str, Callable[[Path, Path, list[str]], dict[str, object]]] = {
    "read": cold_read,
    "mmap": mmap_load,
}


def main() -> None:
    """Run one reader and print what it measured."""
    reader, directory, originals = sys.argv[1:4]
    if reader == "mmap":
        # Outside the clock.
        importlib.import_module("torch")
        importlib.import_module("safetensors")
    # The mount point only: waits until the mount answers, looks nothing up.
    os.stat(Path(directory).parent)
    result = READERS[reader](Path(directory), Path(originals), sys.argv[4:])
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
