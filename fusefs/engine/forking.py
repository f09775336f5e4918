"""How workers come to be: the spawner as the daemon sees it, and what it forks.

It keeps no list of workers and knows no jobs. The one idea: the spawner has imported the SDK and
has no threads, so a fork of it is a worker in milliseconds; it can be started by whoever has the
time, before the daemon itself is there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from dataclasses import dataclass

import trio

from fusefs.engine import jobs
from fusefs.engine.beginnings import channel_pair, start_module
from fusefs.errors import CannotStart, InternalError, from_wire

START_TIMEOUT_S = 25.0
"""For a spawner to import its SDK, 1 s; the keeper waits 30 s for all of a start."""

FORK_TIMEOUT_S = 10.0
"""A spawner forks in milliseconds. One that is stopped, or hangs, is replaced."""


@dataclass(frozen=True, slots=True)
class Started:
    """A spawner that was started, whoever did: its pid, and our end of its control socket."""

    pid: int
    control: socket.socket


@dataclass(frozen=True, slots=True)
class Spawner:
    """The process that forks workers, and what it takes to start it again.

    `pidfd` tells when it ends; `process` is there if we started it, and is to be reaped by us.
    """

    pid: int
    pidfd: int
    control: trio.socket.SocketType
    arena_fd: int
    job_fd: int
    process: trio.Process | None

    async def wait(self) -> None:
        """Return once it has ended."""
        await trio.lowlevel.wait_readable(self.pidfd)
        if self.process is not None:
            await self.process.wait()

    async def end(self) -> None:
        """Kill it, whatever it is doing, and return once it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        await self.wait()

    def close(self) -> None:
        """It has ended, and is forgotten."""
        self.control.close()
        os.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class Forked:
    """A new worker process: its pid, our end of its channel, and a pidfd."""

    pid: int
    channel: socket.socket
    process: int


async def start_spawner(arena_fd: int, job_fd: int, started: Started | None = None) -> Spawner:
    """A spawner that has imported what it needs: one that was started already, or a new one.

    Raises what the store's adapter says of its settings, and CannotStart.
    """
    process = None
    if started is None:
        ours, process = await start_module("fusefs.engine.spawner", (job_fd,))
        started = Started(process.pid, ours)
    control = trio.socket.from_stdlib_socket(started.control)
    try:
        pidfd = os.pidfd_open(started.pid)
    except ProcessLookupError as error:
        control.close()
        raise InternalError("the worker spawner did not start; see the log") from error
    spawner = Spawner(started.pid, pidfd, control, arena_fd, job_fd, process)
    hello = await _ask(control, START_TIMEOUT_S)
    if hello is not None and "error" not in hello:
        return spawner
    await spawner.end()
    spawner.close()
    if hello is None:
        raise InternalError("the worker spawner did not start; see the log")
    raise from_wire(hello["error"])


async def fork_worker(spawner: Spawner, threads: int) -> Forked | None:
    """A new worker, or None if the spawner is gone. Raises CannotStart."""
    ours, theirs = channel_pair()
    with theirs:
        request = jobs.encode({"threads": threads})
        fds = struct.pack("ii", theirs.fileno(), spawner.arena_fd)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            await spawner.control.sendmsg([request], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            ours.close()
            return None
    answer = await _ask(spawner.control, FORK_TIMEOUT_S)
    if answer is None or "error" in answer:
        ours.close()
        if answer is None:
            return None
        raise CannotStart(answer["error"])
    ours.setblocking(False)
    try:
        process = os.pidfd_open(answer["pid"])
    except OSError as error:  # no descriptor is left, or it died at once
        ours.close()
        raise CannotStart(os.strerror(error.errno or 0)) from error
    return Forked(answer["pid"], ours, process)


async def _ask(control: trio.socket.SocketType, timeout_s: float) -> jobs.Message | None:
    """The next message, or None at the end of the stream, or when time is up."""
    data = b""
    with trio.move_on_after(timeout_s), contextlib.suppress(ConnectionResetError):
        data = await control.recv(jobs.MESSAGE_BYTES_MAX)
    return jobs.decode(data) if data else None
