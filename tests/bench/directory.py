"""How much a mount makes of a directory that gives each stream little.

    python -m tests.bench.directory

The directory is `tests/harness/throttled.py`'s, with one large file. Four readers in turn, each
cold: one that reads the directory itself from start to end; the ceiling, so many threads that read
it directly with no mount in between; the first reader again, through a mount that may have as many
streams; and through one that chooses. Every byte of a mount's is compared. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from tests.harness.mounted import open_mount
from tests.harness.throttled import Throttled, open_throttled

MIB = 1 << 20
RANGE_BYTES = 8 * MIB
"""What fusefs asks for with one open file."""
NAME = "model.safetensors"
FOLDER = Path("/dev/shm")
"""Memory: no disk has a part in the figures."""


def read_alone(path: Path, original: Path | None) -> float:
    """Read a file from start to end with one thread; MiB/s. Compared afterwards, if asked for."""
    buffer = memoryview(bytearray(RANGE_BYTES))
    size = 0
    start_s = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            size += got
    seconds = time.monotonic() - start_s
    if original is not None and not _same(path, original):
        raise AssertionError(f"{path} has other bytes than were written")
    return size / MIB / seconds


def read_directly(path: Path, streams: int) -> float:
    """Read a file with so many threads, a fresh open for each range, no page cache; MiB/s."""
    size = path.stat().st_size
    numbers = count()

    def run() -> None:
        with mmap.mmap(-1, RANGE_BYTES) as memory, memoryview(memory) as view:
            while (start := next(numbers) * RANGE_BYTES) < size:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
                try:
                    for offset in range(start, min(start + RANGE_BYTES, size), MIB):
                        at = offset - start
                        got = os.preadv(fd, [view[at : at + MIB]], offset)
                        if got != min(MIB, size - offset):
                            raise AssertionError(f"{got} bytes at {offset}")
                finally:
                    os.close(fd)

    threads = [threading.Thread(target=run) for _ in range(streams)]
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return size / MIB / (time.monotonic() - start_s)


def read_mounted(throttled: Throttled, original: Path, *options: str) -> float:
    """Mount the directory and read it as `read_alone` does; MiB/s."""
    source = f"file://{throttled.path}"
    # On a machine with other work the kernel may drop pages: that is slow, and no fault.
    with open_mount(source, *options, warnings_expected=True) as mounted:
        return read_alone(mounted.path / NAME, original)


def _same(path: Path, original: Path) -> bool:
    with path.open("rb") as one, original.open("rb") as other:
        while piece := one.read(RANGE_BYTES):
            if piece != other.read(RANGE_BYTES):
                return False
        return not other.read(1)


@contextmanager
def _directory(options: argparse.Namespace) -> Iterator[tuple[Throttled, Path]]:
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        files, mountpoint = Path(name, "files"), Path(name, "slow")
        files.mkdir()
        mountpoint.mkdir()
        dice = random.Random(1)
        size = options.size_mb * MIB
        tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        header = json.dumps({"weights": tensor}).encode()
        with (files / NAME).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(options.size_mb):
                file.write(dice.randbytes(MIB))
        with open_throttled(files, mountpoint, options.rate_mb, options.latency_ms) as throttled:
            yield throttled, files / NAME


def _forget(path: Path) -> None:
    """Drop what the page cache has of the slow directory's file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.directory")
    parser.add_argument("--rate-mb", type=float, default=40, help="MiB/s of one open file")
    parser.add_argument("--latency-ms", type=float, default=2)
    parser.add_argument("--size-mb", type=int, default=512)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with _directory(options) as (throttled, original):
        slow = throttled.path / NAME
        limited = f"--set=engine.connections={options.streams}"
        readers: dict[str, Callable[[], float]] = {
            "one stream": partial(read_alone, slow, None),
            f"ceiling, {options.streams} streams": partial(read_directly, slow, options.streams),
            f"fusefs, {options.streams} streams": partial(
                read_mounted, throttled, original, limited
            ),
            "fusefs, automatic": partial(read_mounted, throttled, original),
        }
        rates: dict[str, list[float]] = {name: [] for name in readers}
        asked: dict[str, int] = {}
        for _ in range(options.rounds):
            for name, reader in readers.items():
                _forget(slow)
                throttled.traffic()
                rates[name].append(reader())
                asked[name] = throttled.traffic().files_max
    alone = statistics.median(rates["one stream"])
    print("| reader | MiB/s (median, least to most) | of one stream | files open at once |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"| {name} | {median:.0f} ({spread}) | {median / alone:.1f}x | {asked[name]} |")


if __name__ == "__main__":
    main(sys.argv[1:])
