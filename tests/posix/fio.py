"""fio's verification through a mount: what it wrote beside the mount it checks through it.

    python -m tests.posix.fio [--size-mib 1024] [--rounds 3]

Each 4 KiB of the file carries a checksum and its own place, so fio notices bytes that are wrong,
and bytes that are from elsewhere. It reads with every engine, past the page cache and through it,
in order and at random, with up to 16 jobs. (`--verify_only` wants to write, which `--readonly`
forbids; reads that verify are the same check.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.mounted import open_mount

MIB = 1 << 20
VERIFY = ("--verify=crc32c", "--verify_interval=4096")
MOUNT_MEMORY = "16M"
"""Less than any file has, so that blocks are evicted all the time."""


class Mismatch(Exception):
    """fio read other bytes than it had written, or failed otherwise; the message is its own."""


@dataclass(frozen=True, slots=True)
class Job:
    """One way to read a file."""

    engine: str
    direct: bool
    order: str
    block_kib: int
    jobs: int
    mib_each: int | None = None
    """What each job reads; all of the file if None."""

    def __str__(self) -> str:
        direct = "direct" if self.direct else "cached"
        return f"{self.engine} {direct} {self.order} {self.block_kib}k x{self.jobs}"


SHORT: tuple[Job, ...] = (
    Job("sync", False, "read", 1024, 16),
    Job("sync", False, "randread", 4, 4, 2),
    Job("sync", True, "read", 128, 4, 8),
    Job("sync", True, "randread", 64, 16, 2),
    Job("mmap", False, "read", 64, 16),
    Job("mmap", False, "randread", 4, 4, 2),
    Job("libaio", True, "read", 1024, 4),
    Job("libaio", True, "randread", 256, 16, 4),
    Job("libaio", False, "read", 64, 2),
)
"""Each engine, each order, past the page cache and through it."""


def every_job() -> Iterator[Job]:
    """All combinations that there are; a mapping has no O_DIRECT."""
    ways = itertools.product(
        ("sync", "psync", "mmap", "libaio"), (False, True), ("read", "randread"), (4, 128, 1024),
        (1, 4, 16),
    )  # fmt: skip
    return (Job(*way) for way in ways if way[:2] != ("mmap", True))


def write(path: Path, size: int) -> None:
    """Make the file. Raises Mismatch."""
    _fio("--rw=write", "--ioengine=sync", "--bs=4k", "--do_verify=0", filename=path, size=size)


def verify(path: Path, size: int, job: Job, timeout_s: float = 100.0) -> int:
    """Read and check it; how many bytes. Raises Mismatch."""
    limit = () if job.mib_each is None else (f"--io_size={job.mib_each}m",)
    answer = _fio(
        *limit, "--readonly", f"--rw={job.order}", f"--ioengine={job.engine}",
        f"--bs={job.block_kib}k", f"--direct={int(job.direct)}", f"--numjobs={job.jobs}",
        "--iodepth=8", "--verify_fatal=1", "--group_reporting",
        filename=path, size=size, timeout_s=timeout_s,
    )  # fmt: skip
    return sum(int(each["read"]["io_bytes"]) for each in answer["jobs"])


def _fio(*options: str, filename: Path, size: int, timeout_s: float = 100.0) -> dict[str, Any]:
    fixed = ["fio", "--name=verify", "--output-format=json", *VERIFY]
    done = subprocess.run(
        [*fixed, f"--filename={filename}", f"--size={size}", *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd="/tmp",  # where it leaves its notes, if it does
    )
    if done.returncode != 0:
        raise Mismatch(f"exit {done.returncode}: {done.stderr.strip()} {done.stdout[:500]}")
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


def main() -> int:
    """All combinations, round after round; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.posix.fio")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    wanted = parser.parse_args()
    size, began_s, total = wanted.size_mib * MIB + 4096, time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "data.bin", size)
        limit_s = 3600.0 * wanted.rounds
        with open_mount(f"file://{name}", "--memory", MOUNT_MEMORY, limit_s=limit_s) as mounted:
            for _, job in itertools.product(range(wanted.rounds), every_job()):
                began_job_s = time.monotonic()
                read = verify(mounted.path / "data.bin", size, job, timeout_s=1200.0)
                total += read
                print(f"{job!s:<32} {read // MIB:>6} MiB {time.monotonic() - began_job_s:7.1f} s")
    print(f"{total // MIB} MiB verified in {time.monotonic() - began_s:.0f} s, none wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
