"""Memory of a group of processes, as one figure: the sum of their PSS.

PSS counts a page shared by n processes as 1/n in each, so the sum counts every page once: the
arena, mapped by the daemon and all workers, as well as what forked workers share. A peak is taken
by a process of its own, since a reader that waits inside a page fault holds the GIL and would look
away just when it matters.
"""

from __future__ import annotations

import glob
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_INTERVAL_S = 0.05
"""The arena fills in some 0.5 s at 2 GB/s: ten looks on the way up; each costs a few ms."""

MARKER = "TEST_PROCESS_GROUP"
"""The environment variable that marks all processes of one group; children inherit it."""

_ROOT = Path(__file__).resolve().parent.parent.parent
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(slots=True)
class Peak:
    """The highest sum seen; filled in when the sampling ends."""

    bytes: int = 0
    samples: int = 0


def marked_pids(marker: str) -> list[int]:
    """Return the live processes whose environment carries `MARKER=marker`, whoever started them.

    Also those of which only one thread is left, stuck in the kernel: the environment is its alone.
    """
    wanted = f"{MARKER}={marker}".encode()
    pids = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            environment = _environment(f"/proc/{entry.name}")
            if not environment:
                tasks = glob.glob(f"/proc/{entry.name}/task/*")
                environment = b"\0".join(_environment(task) for task in tasks[1:])
            if wanted in environment.split(b"\0"):
                pids.append(int(entry.name))
    return sorted(pids)


def _environment(directory: str) -> bytes:
    try:
        with open(f"{directory}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""  # It ended while we looked, or belongs to somebody else.


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the sum of PSS; a process that has ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                match = _PSS.search(file.read())
        except OSError:
            continue
        total += int(match[1]) * 1024 if match else 0
    return total


@contextmanager
def open_peak(marker: str) -> Iterator[Peak]:
    """Sample the group from a process of its own; the peak is in the yielded object afterwards."""
    peak = Peak()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.memory", marker],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the opener; the end of the pipe is for this one.
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # It samples from here on.
        yield peak
    finally:
        answer, _ = process.communicate()
        if answer:
            peak.bytes, peak.samples = (int(word) for word in answer.split())


def _sample(marker: str) -> None:
    """Sample until standard input ends, then write `PEAK SAMPLES`."""
    peak = samples = 0
    print("ready", flush=True)
    pids: list[int] = []
    next_scan = 0.0
    while True:
        # Who belongs to the group changes seldom, and asking costs more than the sum itself.
        if time.monotonic() >= next_scan:
            pids = marked_pids(marker)
            next_scan = time.monotonic() + 0.5
        peak = max(peak, pss_bytes(pids))
        samples += 1
        if select.select([sys.stdin], [], [], SAMPLE_INTERVAL_S)[0]:
            print(peak, samples, flush=True)
            return


if __name__ == "__main__":
    _sample(sys.argv[1])
