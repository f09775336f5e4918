"""The mount that a keeper holds: made, asked whether it is still there, and taken away.

It starts no daemon. The one idea: what was adopted belongs to somebody else. It is served and let
go of, but neither unmounted nor aborted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from fusefs.errors import FusefsError
from fusefs.mount import kernel, probe
from fusefs.mount.estate import Estate, open_estate
from fusefs.mount.job import Job

PROBE_TIMEOUT_S = 10.0
"""A fresh mount answers its first getxattr in milliseconds."""

NO_SOCKET_WITHOUT_ROOT = (
    "a socket is bound before the mount becomes read-only, which only root can make it afterwards"
)


class Giver:
    """Whoever gave us a mount that it made, and may give its hints' socket later.

    The mutable state of Giver is whether it is still there.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel: socket.socket | None = channel

    @property
    def sources(self) -> list[socket.socket]:
        """What to wait for."""
        return [self._channel] if self._channel is not None else []

    def receive(self) -> Estate:
        """The mount. Raises FusefsError."""
        assert self._channel is not None
        return Estate.receive(self._channel)

    def take(self, ready: set[int]) -> Estate | None:
        """The mount again, with its socket, if that is what can be read."""
        if self._channel is None or self._channel.fileno() not in ready:
            return None
        try:
            return self.receive()
        except (FusefsError, OSError):  # it ended, or speaks of what we do not know: no more of it
            self._channel.close()
            self._channel = None
            return None


class Holding:
    """One mount, from before it is made until nothing of it is left.

    The mutable state of Holding is the estate: None before it is mounted, and after `close`.
    """

    def __init__(self, job: Job, estate: Estate | None) -> None:
        self._job = job
        self._estate = estate

    @property
    def estate(self) -> Estate:
        """What the mount consists of. Only while there is one."""
        assert self._estate is not None
        return self._estate

    @property
    def exists(self) -> bool:
        """Whether there is something to serve."""
        return self._estate is not None

    def open(self, memory_fd: int) -> None:
        """Mount. Raises FusefsError."""
        job = self._job
        self._estate = open_estate(job.source, job.mountpoint, job.allow_other, memory_fd)

    def is_connected(self) -> bool:
        """Whether the kernel still has requests for us: neither unmounted nor aborted."""
        return self._estate is not None and kernel.is_connected(self._estate.fuse_fd)

    def is_mounted(self) -> bool:
        """Whether our mount is in its place: another one may have taken it."""
        return self._estate is not None and any(
            (row.mountpoint, row.device) == (self._job.mountpoint, self._estate.device)
            for row in kernel.mount_rows()
        )

    def let_go_if_unmounted(self) -> None:
        """Close the hints' socket of a mount that was taken away: it holds it like an open file."""
        if not self._job.owns or self._estate is None or self._estate.listener_fd is None:
            return
        if not any(row.device == self._estate.device for row in kernel.mount_rows()):
            self.close_listener("the mount was taken away")

    def close_listener(self, why: str) -> None:
        """Nobody shall connect any more."""
        if self._estate is not None and self._estate.listener_fd is not None:
            os.close(self._estate.listener_fd)
            self._estate = self._estate.with_listener(None, why)

    def add_listener(self, given: Estate) -> tuple[int | None, str]:
        """Take the hints' socket out of a newer copy of this mount; returns it, and why not."""
        os.close(given.fuse_fd)
        os.close(given.memory_fd)
        self.close_listener("there is another one")
        self._estate = self.estate.with_listener(given.listener_fd, given.no_listener)
        return given.listener_fd, given.no_listener

    def unmount(self) -> None:
        """Take it from its place, if it is there: at once, or from those who use it as they end."""
        if not self._job.owns or not self.is_mounted():
            return
        try:
            kernel.unmount(self._job.mountpoint)
        except OSError:
            with contextlib.suppress(OSError):  # gone in this moment, or not permitted: see `abort`
                kernel.unmount(self._job.mountpoint, lazy=True)

    def abort(self) -> None:
        """End the connection if it is still there.

        A killed daemon leaves READs behind that hold pages locked, and a push that waits for such a
        page holds the connection: nothing but this ends both.
        """
        if self._job.owns and self.is_connected():  # else the number may be another mount's by now
            kernel.abort_connection(self.estate.device)

    def close(self) -> None:
        """Let go of it."""
        if self._estate is not None:
            self._estate.close()
            self._estate = None

    def prove(self) -> tuple[int | None, str]:
        """Have a child ask the mount a question: if it hangs, it is the child that hangs.

        As root it also binds the hints' socket there, and the mount is made read-only behind it.
        Returns that socket, or None and why there is none. Raises FusefsError.
        """
        privileged = os.geteuid() == 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            fds = (theirs.fileno(),) if privileged else ()
            child = subprocess.Popen(
                [sys.executable, "-S", "-E", probe.__file__, self._job.mountpoint, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
            try:
                status = child.wait(PROBE_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                self.abort()
                child.kill()
                raise FusefsError("the mount does not answer; see the log") from error
            if status != 0:
                raise FusefsError("the mount answers with an error; see the log")
            listener, why = probe.take_socket(ours) if privileged else (None, "")
        if privileged:
            kernel.make_read_only(self._job.mountpoint)
        why = why or NO_SOCKET_WITHOUT_ROOT
        self._estate = self.estate.with_listener(listener, "" if listener is not None else why)
        return listener, why
