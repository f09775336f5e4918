"""One daemon with all its processes, as the keeper sees it: started, spoken with, ended.

It knows nothing of mounts. The one idea: a daemon leads a process group of its own, so that its
spawner, workers and pusher end with it, at once and whatever they are doing; their memory is free
for the next ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from fusefs.errors import CannotStart, FusefsError

_MESSAGE_BYTES_MAX = 65536

_PR_SET_CHILD_SUBREAPER = 36
"""Of <linux/prctl.h>."""


class DaemonRefused(FusefsError):
    """The daemon said why it cannot serve.

    `status` is the exit status that goes with it, `kind` the class of the error it met.
    """

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Generation:
    """A daemon that was started, by us or by the keeper that we took over from.

    The mutable state of Generation is how it ended. INVARIANT: until then `pid` is its leader, and
    nobody else's number.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self._status: int | None = None

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message. Raises FusefsError if nobody is there."""
        try:
            socket.send_fds(self.channel, [json.dumps(message).encode()], list(fds))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise FusefsError("the daemon ended unexpectedly; see the log") from error

    def hear(self, word: str) -> Any:
        """What it says of `word`, which is there to be read. Raises FusefsError: what it says."""
        try:
            data = self.channel.recv(_MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            data = b""
        if not data:
            raise FusefsError("the daemon ended unexpectedly; see the log")
        message = json.loads(data)
        if "error" in message:
            raise DaemonRefused(message["error"], message["status"], message["class"])
        if word not in message:
            raise FusefsError(f"the daemon said something unforeseen instead of {word!r}")
        return message[word]

    @property
    def has_ended(self) -> bool:
        """Whether the daemon is gone; then so are its processes, or they are about to be."""
        if self._status is None:
            # First without reaping: as long as the leader is a zombie, the group's number is its.
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    @property
    def status(self) -> int:
        """Its exit status, or minus the signal that killed it; 0 while it lives."""
        return self._status or 0

    def describe_end(self) -> str:
        """How it ended, for people."""
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"

    def ask_to_end(self) -> None:
        """Let it answer what it has in hand, and end."""
        if not self.has_ended:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it is doing, a stopped one as well."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.kill(self.pid, signal.SIGKILL)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for its end; false if it still lives after `timeout_s`."""
        if not self.has_ended:
            pidfd = os.pidfd_open(self.pid)
            try:
                select.select([pidfd], [], [], timeout_s)
            finally:
                os.close(pidfd)
        return self.has_ended

    def hang_up(self) -> None:
        """Close the channel: a daemon that serves goes on, one that does not ends."""
        self.channel.close()


def become_reaper() -> None:
    """Be given the processes that a dead daemon leaves, where nobody else might reap them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(leader: int) -> None:
    """Reap whatever has ended but for `leader`, which its `Generation` does."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == leader:
                return
            os.waitpid(ended.si_pid, 0)


def start_generation(job_fd: int, memory_fd: int) -> Generation:
    """Start a daemon, which waits to be told what to do (see `fusefs.mount.daemon`).

    Its spawner is started at the same time: each takes half a second to import what it needs.
    Raises CannotStart.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control, controlled = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise CannotStart(os.strerror(error.errno or 0)) from error
    with theirs, control, controlled:
        try:
            daemon = _spawn("mount.daemon", 0, [theirs, job_fd, memory_fd, control])
        except OSError as error:
            ours.close()
            raise CannotStart(os.strerror(error.errno or 0)) from error
        generation = Generation(daemon, ours)
        try:
            spawner = _spawn("engine.spawner", daemon, [controlled, job_fd])
        except OSError as error:
            generation.kill()
            generation.hang_up()
            raise CannotStart(os.strerror(error.errno or 0)) from error
    generation.tell({"spawner": spawner})
    return generation


def _spawn(module: str, group: int, sources: Sequence[socket.socket | int]) -> int:
    """Run a module of ours in a process group, its own if 0, with copies of these descriptors."""
    numbers = [source if isinstance(source, int) else source.fileno() for source in sources]
    fds = [os.dup(number) for number in numbers]
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", f"fusefs.{module}", *map(str, fds)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=group,
            setsigmask=[],
        )
    finally:
        for fd in fds:
            os.close(fd)
