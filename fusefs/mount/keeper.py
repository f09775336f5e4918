"""The parent of a mount: `python -m fusefs.mount.keeper JOB_FD REPORT_FD`.

Starts the daemon, mounts once the daemon has checked the source, hands it the /dev/fuse descriptor,
proves that the mount answers, reports, and waits: for the daemon's end (then it makes sure that
nothing stays mounted) or for a signal (then it unmounts). Small and without pyfuse3, so that it can
hold the descriptor across daemons. It holds no file, directory or mapping inside the mount.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from fusefs.engine import jobs
from fusefs.engine.machine import name_process
from fusefs.errors import FusefsError
from fusefs.mount import kernel, probe

CHECK_TIMEOUT_S = 30.0
"""For starting processes and checking the source, which has its own deadline of 10 s; the command
line waits for 45 s."""

PROBE_TIMEOUT_S = 10.0
"""A fresh mount answers its first getxattr in milliseconds."""

GRACE_S = 10.0
"""After a lazy unmount readers may finish for so long, then the connection is aborted."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_OF = "processes (ulimit -u, pids.max) or of open files (ulimit -n)"

NO_SOCKET_WITHOUT_ROOT = (
    "a socket is bound before the mount becomes read-only, which only root can make it afterwards"
)


class Stopped(Exception):
    """A signal asked the keeper to stop before the mount was ready."""


class Keeper:
    """One mount's life.

    The mutable state of Keeper is the daemon and the channel to it, the descriptor, the mount's
    device and the signals that came. INVARIANT: `_device` is set exactly while the mount may still
    be there.
    """

    def __init__(self, job: dict[str, Any], job_fd: int) -> None:
        self._source = job["source"]
        self._mountpoint = job["mountpoint"]
        self._allow_other = job["config"]["mount"]["allow_other"]
        self._job_fd = job_fd
        self._daemon: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._fuse_fd: int | None = None
        self._device: str | None = None
        self._wake, wake_end = socket.socketpair()
        wake_end.setblocking(False)
        self._wake.setblocking(False)
        self._wake_end = wake_end
        self._signals: set[int] = set()

    def watch_signals(self) -> None:
        """Turn signals into bytes that `select` sees."""
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_end.fileno())

    def start(self) -> None:
        """Bring the mount up. Raises FusefsError or Stopped; then `stop` cleans up."""
        self._channel = channel = self._start_daemon()  # open for life: its end tells of ours
        self._expect(channel, "checked", CHECK_TIMEOUT_S)
        kernel.mount_connections()
        self._fuse_fd = kernel.mount_fuse(self._source, self._mountpoint, self._allow_other)
        row = kernel.find_mount(self._mountpoint)
        self._device = row.device if row else None
        socket.send_fds(channel, [b"fuse"], [self._fuse_fd])
        self._expect(channel, "serving", CHECK_TIMEOUT_S)
        self._probe(channel)

    def wait(self) -> int:
        """Wait for the daemon's end or a signal; returns the exit status with all cleaned up."""
        while True:
            if self._daemon is None or self._daemon.poll() is not None:
                self.stop()
                return self._daemon.returncode if self._daemon else 1
            if self._signals & _STOP_SIGNALS:
                self.stop()
                return 0
            self._wait_readable(None)

    def stop(self) -> None:
        """Unmount, let the daemon end, and abort what does not end by itself. Idempotent."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._daemon is not None and self._daemon.poll() is not None:
            self._abort()
        if self._device is not None and self._is_mounted():
            try:
                kernel.unmount(self._mountpoint)
            except OSError:
                self._unmount_lazily()
        if self._daemon is not None and not self._ended(GRACE_S if self._device else 0.0):
            self._daemon.kill()
            self._daemon.wait()
        self._abort()
        if self._fuse_fd is not None:
            os.close(self._fuse_fd)
            self._fuse_fd = None
        self._device = None

    def _abort(self) -> None:
        """End the connection if it is still there.

        A killed daemon leaves READs behind that hold pages locked, and a push that waits for such a
        page holds the connection: nothing but this ends both.
        """
        if self._device is None or self._fuse_fd is None:
            return
        if kernel.is_connected(self._fuse_fd):  # else the number may be another mount's by now
            kernel.abort_connection(self._device)

    def _unmount_lazily(self) -> None:
        try:
            kernel.unmount(self._mountpoint, lazy=True)
        except OSError:
            return  # unmounted by somebody else in this moment, or not permitted: abort comes next

    def _is_mounted(self) -> bool:
        """Whether our mount is still there: another one may have taken its place."""
        return any(
            (row.mountpoint, row.device) == (self._mountpoint, self._device)
            for row in kernel.mount_rows()
        )

    def _start_daemon(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), self._job_fd)
        with theirs:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "fusefs.mount.daemon", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        return ours

    def _expect(self, channel: socket.socket, word: str, timeout_s: float) -> None:
        """Wait until the daemon says `word`; raises what it says instead."""
        until = time.monotonic() + timeout_s
        while not self._wait_readable(channel, until):
            if self._signals & _STOP_SIGNALS:
                raise Stopped
            if time.monotonic() > until:
                raise FusefsError("the daemon did not answer in time; see the log")
        data = channel.recv(65536)
        if not data:
            raise FusefsError("the daemon ended unexpectedly; see the log")
        message = json.loads(data)
        if "error" in message:
            raise DaemonRefused(message["error"], message["status"])
        if word not in message:
            raise FusefsError(f"the daemon said something unforeseen instead of {word!r}")

    def _wait_readable(self, channel: socket.socket | None, until: float | None = None) -> bool:
        """Sleep until the channel has something (True), or a signal came or time is up (False)."""
        sources = [self._wake] + ([channel] if channel else [])
        timeout = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select(sources, [], [], timeout)
        if self._wake in ready:
            self._signals.update(self._wake.recv(4096))
        return channel in ready

    def _probe(self, channel: socket.socket) -> None:
        """Let a child ask the mount a question: if it hangs, it is the child that hangs.

        As root it also binds the hints' socket there, and the mount is made read-only behind it.
        """
        privileged = os.geteuid() == 0
        fds = (channel.fileno(),) if privileged else ()
        if not privileged:
            channel.send(jobs.encode({"socket": False, "why": NO_SOCKET_WITHOUT_ROOT}))
        child = subprocess.Popen(
            [sys.executable, "-S", "-E", probe.__file__, self._mountpoint, *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            status = child.wait(PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            if self._device is not None:
                kernel.abort_connection(self._device)
            child.kill()
            raise FusefsError("the mount does not answer; see the log") from error
        if status != 0:
            raise FusefsError("the mount answers with an error; see the log")
        if privileged:
            kernel.make_read_only(self._mountpoint)

    def _ended(self, timeout_s: float) -> bool:
        assert self._daemon is not None
        try:
            self._daemon.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class DaemonRefused(FusefsError):
    """The daemon said why it cannot serve; `status` is the exit status that goes with it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(job_fd: int, report_fd: int) -> int:
    """Keep one mount; reports once on `report_fd`, then stays until the mount is gone."""
    with open(job_fd, closefd=False) as file:
        file.seek(0)
        job = json.load(file)
    name_process("fusefs-keeper")
    keeper = Keeper(job, job_fd)
    keeper.watch_signals()
    try:
        keeper.start()
    except FusefsError as error:
        keeper.stop()
        status = error.status if isinstance(error, DaemonRefused) else 1
        _report(report_fd, {"ok": False, "status": status, "message": str(error)})
        return status
    except OSError as error:  # a limit of processes or of open files
        keeper.stop()
        message = f"cannot start the mount's processes: {error.strerror}; raise the limit of {_OF}"
        _report(report_fd, {"ok": False, "status": 1, "message": message})
        return 1
    except Stopped:
        keeper.stop()
        _report(report_fd, {"ok": False, "status": 1, "message": "stopped before it was mounted"})
        return 1
    _report(report_fd, {"ok": True, "pid": os.getpid()})
    return keeper.wait()


def _report(report_fd: int, report: dict[str, Any]) -> None:
    """Tell whoever started us; it may be gone, and that changes nothing."""
    try:
        with open(report_fd, "w") as pipe:
            pipe.write(json.dumps(report) + "\n")
    except BrokenPipeError:
        return


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
