"""Starting a mount's keeper and learning what became of it.

The job goes through a memfd, so it shows in no process list and leaves no file; the answer is one
JSON line on a pipe. Whatever fails, or whoever interrupts, nothing stays mounted or running. The
keeper alone mounts; here is only its birth and, with `-f`, the wait for its end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import fusefs
from fusefs.client import ask_mount, wait_ended
from fusefs.errors import FusefsError
from fusefs.mount import kernel

KEEPER = (sys.executable, "-m", "fusefs.mount.keeper")

START_TIMEOUT_S = 45.0
"""The keeper checks the source with a shorter deadline of its own; mount units get 90 s."""

END_TIMEOUT_S = 12.0
"""For a keeper whose start failed: nobody reads yet, so `mount.grace_s` does not matter."""

KILLED_TIMEOUT_S = 5.0
"""For a killed process to go."""

_REPORT_BYTES_MAX = 65536
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartFailed(FusefsError):
    """The mount did not come up; `status` is the exit status to leave with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class _Relay:
    """Passes signals on to the keeper as SIGTERM, also those that come before it is there.

    The mutable state of _Relay is `requested` and `_keeper`. INVARIANT: a requested end has been
    sent to a keeper that is known.
    """

    def __init__(self) -> None:
        self.requested = False
        self._keeper: subprocess.Popen[bytes] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._keeper is not None:
            self._keeper.terminate()

    def attach(self, keeper: subprocess.Popen[bytes]) -> None:
        """Name the keeper."""
        self._keeper = keeper
        if self.requested:
            keeper.terminate()


def mount_in_background(
    job: dict[str, Any], keeper: Sequence[str] = KEEPER, timeout_s: float = START_TIMEOUT_S
) -> subprocess.Popen[bytes]:
    """Return the keeper's process once the mount answers. Raises StartFailed, with all ended."""
    with _relayed_signals() as relay:
        return _start(job, keeper, relay, timeout_s)


def mount_in_front(
    job: dict[str, Any],
    ready: Callable[[], None],
    keeper: Sequence[str] = KEEPER,
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Call `ready` when the mount answers, return once it has ended in order.

    Raises StartFailed if it never was, or broke.
    """
    with _relayed_signals() as relay:
        process = _start(job, keeper, relay, timeout_s)
        ready()
        status = _wait(process)
    if status != 0:
        _remove_dead_mount(job["mountpoint"])
    if status < 0:
        raise StartFailed(f"the mount's keeper was killed by {signal.Signals(-status).name}")
    if status > 0:
        raise StartFailed("the mount ended with an error; the log says more", status)


def _wait(keeper: subprocess.Popen[bytes]) -> int:
    """Wait for the keeper; as process 1 of a container also for what others left to it."""
    while True:
        pid, status = os.wait()
        if pid == keeper.pid:
            keeper.returncode = os.waitstatus_to_exitcode(status)
            return keeper.returncode


def _start(
    job: dict[str, Any], command: Sequence[str], relay: _Relay, timeout_s: float
) -> subprocess.Popen[bytes]:
    foreground = job["foreground"]
    report_end, keepers_end = os.pipe()
    job_fd = os.memfd_create("fusefs-job")
    try:
        os.write(job_fd, json.dumps(job).encode())
        os.lseek(job_fd, 0, os.SEEK_SET)
        output = None if foreground else subprocess.DEVNULL
        process = subprocess.Popen(
            [*command, str(job_fd), str(keepers_end)],
            pass_fds=(job_fd, keepers_end),
            start_new_session=not foreground,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",  # a folder that can be unmounted must not be held
            env=_environment(),
        )
    except OSError as error:
        os.close(report_end)
        raise StartFailed(f"cannot start the mount's processes: {error.strerror}") from error
    finally:
        os.close(keepers_end)
        os.close(job_fd)
    relay.attach(process)
    with open(report_end, "rb", buffering=0) as pipe:
        line = _read_line(pipe.fileno(), time.monotonic() + timeout_s)
    failure = _failure(line, relay.requested)
    if failure is None:
        return process
    if line is None:
        process.terminate()
    _end_all(process, foreground)
    _remove_dead_mount(job["mountpoint"])
    raise failure


def _failure(line: bytes | None, interrupted: bool) -> StartFailed | None:
    """What the report means; None if it says that the mount answers."""
    if line is None:
        return StartFailed("the mount did not come up in time; the log says more")
    try:
        report = json.loads(line)
        if report["ok"]:
            return None
        refusal = StartFailed(str(report["message"]), int(report["status"]))
    except (ValueError, KeyError, TypeError):
        refusal = StartFailed("the keeper died before the mount was ready; -f shows why")
    return StartFailed("interrupted before the mount was ready") if interrupted else refusal


def _read_line(fd: int, until: float) -> bytes | None:
    """One line, what there was before the end of the pipe, or None when time is up."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _REPORT_BYTES_MAX:
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        piece = os.read(fd, _REPORT_BYTES_MAX)
        if not piece:
            break
        data += piece
    return data


def _end_all(process: subprocess.Popen[bytes], foreground: bool) -> None:
    """A keeper that failed ends by itself, after its children; what does not is killed."""
    pidfd = os.pidfd_open(process.pid)
    wait_ended([pidfd], END_TIMEOUT_S)
    os.close(pidfd)
    if foreground:
        process.kill()  # it shares our process group: its children notice that it died
    else:
        # Until it is reaped below, nobody else can get its number.
        _kill_session(process.pid)
    with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel: nothing more can be done
        process.wait(KILLED_TIMEOUT_S)


def _kill_session(leader: int) -> None:
    """Kill all processes of a session: a daemon has a process group of its own in it."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(ProcessLookupError):  # ended while we looked
                if os.getsid(int(entry.name)) == leader:
                    os.kill(int(entry.name), signal.SIGKILL)


def _remove_dead_mount(mountpoint: str) -> None:
    """Take away what a keeper left that could not clean up; nothing was mounted there before."""
    row = kernel.find_mount(mountpoint)
    if row is None or row.fstype != kernel.FSTYPE or not ask_mount(mountpoint).dead:
        return
    try:
        kernel.unmount(mountpoint, lazy=True)
    except OSError as error:
        raise StartFailed(
            f"the mount broke and {mountpoint} could not be unmounted: {error.strerror}"
        ) from error


def _environment() -> dict[str, str]:
    """Ours, with the place of this package if only the current folder made it importable."""
    root = str(Path(fusefs.__file__).resolve().parent.parent)
    environment = dict(os.environ)
    if sys.path and os.path.abspath(sys.path[0]) == root:
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{rest}" if rest else root
    return environment


@contextmanager
def _relayed_signals() -> Iterator[_Relay]:
    relay = _Relay()
    before = {number: signal.signal(number, relay) for number in _SIGNALS}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
