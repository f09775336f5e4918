"""Mounts of the bench: brought up, answered for, and taken away whatever happens to them.

Knows no contestant (`contestants.py` has their command lines). One idea: nothing here touches the
mount itself; mountinfo tells when it is there, pidfds tell when its processes have ended, and a
watchdog in a session of its own aborts the connection when the bench dies or a limit passes.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusefs.client import ask_mount, process_ids
from tests.bench import watchdog
from tests.bench.processes import (
    REPOSITORY,
    ChildFailed,
    child_environment,
    descendants,
    run_limited,
    stop,
    wait_ended,
)

MOUNT_LIMIT_S = 60.0
UMOUNT_LIMIT_S = 30.0
STATUS_LIMIT_S = 10.0
LOG_TAIL = 1500


@dataclass(frozen=True, slots=True)
class Knobs:
    """Kernel settings of one mount, written from outside once it is up; None: left alone."""

    read_ahead_kb: int | None = None
    max_background: int | None = None


@dataclass(frozen=True, slots=True)
class MountCommand:
    """How to mount.

    `command` and `umount` hold "{mountpoint}" and "{scratch}" (an empty folder in memory, fresh for
    this mount). `returns` tells that the command comes back when the mount is up (fusefs), else it
    is the mount's process.
    """

    command: tuple[str, ...]
    umount: tuple[str, ...] = ("umount", "{mountpoint}")
    returns: bool = False
    knobs: Knobs | None = None


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount that is up, and the processes behind it."""

    path: Path
    pids: tuple[int, ...]
    has_status: bool

    def status(self) -> dict[str, Any]:
        """Return what fusefs tells of itself; {} for others. Raises `ChildFailed`."""
        if not self.has_status:
            return {}
        return _read_status(self.path)

    def abort(self) -> None:
        """Fail everything that waits for this mount."""
        watchdog.abort(str(self.path))


@contextmanager
def open_mount(
    how: MountCommand, scratch_parent: Path, environment: Mapping[str, str], limit_s: float
) -> Iterator[Mounted]:
    """Mount for the length of the block; `limit_s` seconds later the watchdog ends it.

    Raises `ChildFailed` if it does not come up, or if it leaves a process behind.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch_parent) as scratch:
        mountpoint = Path(tempfile.mkdtemp(prefix="bench-mount-"))
        names = {"mountpoint": str(mountpoint), "scratch": scratch}
        log = Path(scratch) / "log"
        guard = _start_watchdog(mountpoint, limit_s)
        process: subprocess.Popen[bytes] | None = None
        pids: tuple[int, ...] = ()
        try:
            process = _spawn([part.format(**names) for part in how.command], log, environment)
            _wait_mounted(process, mountpoint, how.returns, log)
            if how.knobs is not None:
                _set_knobs(mountpoint, how.knobs)
            pids = _pids_of_status(mountpoint) if how.returns else descendants(process.pid)
            yield Mounted(path=mountpoint, pids=pids, has_status=how.returns)
        finally:
            _unmount([part.format(**names) for part in how.umount], mountpoint)
            if process is not None:
                stop(process, UMOUNT_LIMIT_S)
            left = wait_ended(pids, UMOUNT_LIMIT_S)
            assert guard.stdin is not None
            guard.stdin.write(b"done\n")
            guard.stdin.close()
            guard.wait()
            if watchdog.connection_of(str(mountpoint)) is not None:
                raise ChildFailed(f"cannot be unmounted: {mountpoint}")
            mountpoint.rmdir()
        if left:
            raise ChildFailed(f"unmounted, but still running: {left}")


def _spawn(
    command: list[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=child_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the bench, which unmounts.
            start_new_session=True,
        )


def _start_watchdog(mountpoint: Path, limit_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, watchdog.__file__, str(mountpoint), str(limit_s)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _wait_mounted(
    process: subprocess.Popen[bytes], mountpoint: Path, returns: bool, log: Path
) -> None:
    """Wait for the mount to show up in mountinfo, or for its process to end without one.

    The kernel marks mountinfo as changed (proc(5): POLLPRI) at each mount and unmount.
    """
    if returns:
        try:
            status = process.wait(MOUNT_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ChildFailed(f"did not mount within {MOUNT_LIMIT_S:.0f} s") from None
        if status != 0 or watchdog.connection_of(str(mountpoint)) is None:
            raise ChildFailed(f"did not mount ({status}): {log.read_text()[-LOG_TAIL:]}")
        return
    deadline = time.monotonic() + MOUNT_LIMIT_S
    pidfd = os.pidfd_open(process.pid)
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(mountinfo, select.POLLPRI)
        poll.register(pidfd, select.POLLIN)
        while watchdog.connection_of(str(mountpoint)) is None:
            left_s = deadline - time.monotonic()
            if process.poll() is not None or left_s <= 0:
                raise ChildFailed(f"did not mount: {log.read_text()[-LOG_TAIL:]}")
            poll.poll(left_s * 1000)
    finally:
        os.close(mountinfo)
        os.close(pidfd)


def _set_knobs(mountpoint: Path, knobs: Knobs) -> None:
    """Write them; after the first answer, since INIT resets one, and before any file is opened."""
    path = str(mountpoint)
    run_limited(["stat", path], STATUS_LIMIT_S, lambda: watchdog.abort(path))
    number = watchdog.connection_of(path)
    if knobs.read_ahead_kb is not None:
        _write(Path(f"/sys/class/bdi/0:{number}/read_ahead_kb"), knobs.read_ahead_kb)
    if knobs.max_background is not None:
        watchdog.show_connections()
        connection = watchdog.CONNECTIONS / str(number)
        _write(connection / "max_background", knobs.max_background)
        # The kernel's own proportion.
        _write(connection / "congestion_threshold", knobs.max_background * 3 // 4)


def _write(knob: Path, value: int) -> None:
    knob.write_text(str(value))
    if int(knob.read_text()) != value:
        raise ChildFailed(f"the kernel does not take {value} for {knob}")


def _read_status(mountpoint: Path) -> dict[str, Any]:
    answer = ask_mount(str(mountpoint), STATUS_LIMIT_S)
    if answer.stats is None:
        raise ChildFailed(f"no status: the mount {answer.trouble}")
    return answer.stats


def _pids_of_status(mountpoint: Path) -> tuple[int, ...]:
    """Return every process of a fusefs mount: those it names and all below them."""
    named = process_ids(_read_status(mountpoint))
    return tuple(sorted({pid for root in named for pid in descendants(root)}))


def _unmount(command: list[str], mountpoint: Path) -> None:
    """Unmount in order; a mount that does not go is aborted and taken away."""
    if watchdog.connection_of(str(mountpoint)) is None:
        return
    try:
        run_limited(command, UMOUNT_LIMIT_S, lambda: watchdog.abort(str(mountpoint)))
    except ChildFailed:
        watchdog.abort(str(mountpoint))
