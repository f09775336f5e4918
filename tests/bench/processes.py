"""Child processes of the bench: run within a limit, found, waited for, and what they cost.

Not for mounts (`mounts.py`). One idea: waiting is always on an event the kernel reports (a pidfd, a
pipe), with a bound.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).resolve().parents[2]

PSS_PERIOD_S = 0.1
"""Between two looks at the memory: a walk over a 2 GiB arena in 4 KiB pages takes some 10 ms."""


class ChildFailed(Exception):
    """A child ended with an error or was too slow; the message says which and how."""


def with_death_signal(command: Sequence[str]) -> list[str]:
    """Return `command` such that it gets SIGTERM when the thread that starts it ends."""
    return ["setpriv", "--pdeathsig", "TERM", "--", *command]


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with `extra`, without what it says of another S3 account or server.

    Not only for cleanliness: rclone 1.60 refuses to start where AWS_CA_BUNDLE is set.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS")}
    return {**kept, **extra}


def run_limited(
    command: Sequence[str],
    limit_s: float,
    unstick: Callable[[], None],
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `command` for at most `limit_s` seconds and return its standard output.

    A child that is too slow is killed; `unstick` is called first, since a process that waits for a
    hung mount does not die of SIGKILL before the mount's connection is aborted. Raises
    `ChildFailed`.
    """
    child = subprocess.Popen(
        with_death_signal(command),
        cwd=REPOSITORY,
        env=child_environment(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"not done after {limit_s:.0f} s") from error
    finally:
        if child.poll() is None:
            unstick()
            child.kill()
            child.communicate()
    if child.returncode != 0:
        last = errors.strip().splitlines()[-3:]
        raise ChildFailed(f"ended with {child.returncode}: {' | '.join(last)}")
    return output


def wait_ended(pids: Iterable[int], limit_s: float) -> tuple[int, ...]:
    """Wait until these processes have ended, each at most `limit_s`; return those that live on."""
    alive = []
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([pidfd], [], [], limit_s)[0]:
                alive.append(pid)
        finally:
            os.close(pidfd)
    return tuple(alive)


def stop(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """End a child of ours: wait, SIGTERM, SIGKILL, each with the same bound (seconds)."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
            return


def descendants(pid: int) -> tuple[int, ...]:
    """Return `pid` and every process below it, now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat_fields(int(entry.name))
            if fields:
                parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for candidate in found:
        found += [child for child, parent in parents.items() if parent == candidate]
    return tuple(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time these processes have used, in seconds (10 ms resolution)."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS_PER_S


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes, shared pages divided among those who map them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def _stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on (proc(5): field 3 is index 0), [] if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


@dataclass(slots=True)
class PssPeak:
    """The highest `pss_bytes` seen so far."""

    peak_bytes: int = 0
    looks: int = 0


class _Sampler:
    """Looks at the memory of some processes from a thread of its own.

    The mutable state of a sampler is `seen`; only its thread writes it, readers come after `stop`.
    """

    def __init__(self, pids: tuple[int, ...], seen: PssPeak) -> None:
        self._pids = pids
        self._seen = seen
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pss", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._seen.peak_bytes = max(self._seen.peak_bytes, pss_bytes(self._pids))
            self._seen.looks += 1
            if self._stopped.wait(PSS_PERIOD_S):
                return


@contextmanager
def open_pss_sampler(pids: tuple[int, ...]) -> Iterator[PssPeak]:
    """Sample the memory of `pids` while the block runs."""
    seen = PssPeak()
    with _Sampler(pids, seen):
        yield seen
