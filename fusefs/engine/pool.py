"""Worker processes as the daemon sees them: start, feed, replace.

`Pool` knows sockets and pids; it does not know what a job means. Its one idea: a job is handed to a
worker only when one of that worker's threads is idle, so every decision about order stays with the
fetcher until the last moment. Small questions (`call`) go before bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from fusefs.engine import jobs
from fusefs.engine.forking import Forked, Spawner, Started, fork_worker, start_spawner
from fusefs.errors import CannotStart, FusefsError, InternalError, StoreUnavailable, from_wire
from fusefs.telemetry.counters import Counters

log = logging.getLogger("fusefs.pool")

CALL_ATTEMPTS_MAX = 3
"""A question that killed three workers in a row is not asked a fourth time."""

RESPAWN_PAUSE_S = 0.5
"""Between deaths of workers: a crash loop must not burn a core."""

SILENT_S = 150.0
"""A worker that owes answers and says nothing at all for so long is stopped, or hangs: a store is
given up after 20 s without a byte, and a READ after 120 s. What it owes is asked of another."""

SILENT_LOOK_S = 10.0

ReadHandler = Callable[[jobs.Message], None]


@dataclass(slots=True, eq=False)
class _Call:
    """One question and, later, its answer."""

    message: jobs.Message
    done: trio.Event = field(default_factory=trio.Event)
    parts: list[Any] = field(default_factory=list)
    result: Any = None
    error: FusefsError | None = None
    attempts: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process. INVARIANT: len(jobs) <= threads.

    `process` is a pidfd; `heard_s` is when it last said something, or owed nothing.
    """

    pid: int
    channel: socket.socket
    threads: int
    process: int
    heard_s: float
    jobs: dict[int, _Call | None] = field(default_factory=dict)

    @property
    def idle(self) -> int:
        return self.threads - len(self.jobs)

    def close(self) -> None:
        self.channel.close()
        os.close(self.process)


class Pool:
    """The workers of one mount.

    The mutable state of Pool is the spawner, the workers, the calls that wait for an idle thread,
    and the number of the next job. INVARIANT: every job is in exactly one worker's `jobs`, or in
    `_waiting`.
    """

    def __init__(self, workers: int, threads: int, counters: Counters) -> None:
        self._wanted = workers
        self._threads = threads
        self._counters = counters
        self._workers: list[_Worker] = []
        self._waiting: deque[_Call] = deque()
        self._next_job = 0
        self._fork_lock = trio.Lock()
        self._spawner: Spawner | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    @property
    def capacity(self) -> int:
        """How many jobs can run at once."""
        return self._wanted * self._threads

    @property
    def idle(self) -> int:
        """How many more jobs can start now."""
        return sum(worker.idle for worker in self._workers)

    @property
    def spawner_pid(self) -> int:
        """Process id of the spawner, 0 before `start`."""
        return self._spawner.pid if self._spawner else 0

    async def start(self, arena_fd: int, job_fd: int, started: Started | None = None) -> None:
        """Start all workers, from a spawner that somebody started for us or from one of our own.

        Raises what the store's adapter says of its settings, and CannotStart.
        """
        self._spawner = await start_spawner(arena_fd, job_fd, started)
        for _ in range(self._wanted):
            forked = await fork_worker(self._spawner, self._threads)
            if forked is None:
                raise InternalError("the worker spawner died at once; see the log")
            self._workers.append(self._adopt(forked))

    async def start_anyhow(self, arena_fd: int, job_fd: int, started: Started) -> None:
        """Like `start`, for as long as it takes: readers wait already, whatever is wrong."""
        source: Started | None = started
        while True:
            try:
                await self.start(arena_fd, job_fd, source)
            except FusefsError as error:
                log.error("no worker starts: %s; trying again", error)  # noqa: TRY400 - a sentence
                source = None
                await trio.sleep(RESPAWN_PAUSE_S)
            else:
                return

    async def run(self, on_read: ReadHandler, on_idle: Callable[[], None]) -> None:
        """Deliver answers for ever.

        `on_read` gets the messages of read jobs, also `{"id", "lost": True}` when the worker died;
        `on_idle` is called when a thread became free.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._attend_spawner)
            nursery.start_soon(self._end_silent)
            self._start_calls()  # those that were asked before there was a worker
            on_idle()
            for worker in list(self._workers):
                nursery.start_soon(self._attend, worker, on_read, on_idle)

    def start_read(self, job: jobs.ReadJob) -> None:
        """Hand a read to the least busy worker. The caller has seen `idle` > 0."""
        self._send(self._least_busy(), job.job, job.to_message(), None)

    def new_job(self) -> int:
        """A number no job has had."""
        self._next_job += 1
        return self._next_job

    async def call(self, op: str, **arguments: Any) -> tuple[Any, list[Any]]:
        """Ask a worker: (result, parts). Raises what the worker raised."""
        call = _Call({"op": op, **arguments})
        self._waiting.append(call)
        self._start_calls()
        try:
            await call.done.wait()
        except trio.Cancelled:
            if call in self._waiting:
                self._waiting.remove(call)
            raise
        if call.error is not None:
            raise call.error
        return call.result, call.parts

    def close(self) -> None:
        """Close all channels: workers and spawner end by themselves."""
        for worker in self._workers:
            worker.close()
        if self._spawner is not None:
            self._spawner.control.close()

    def _least_busy(self) -> _Worker:
        return max(self._workers, key=lambda worker: worker.idle)

    def _send(self, worker: _Worker, job: int, message: jobs.Message, call: _Call | None) -> None:
        if not worker.jobs:
            worker.heard_s = trio.current_time()
        worker.jobs[job] = call
        # If it just died, `_attend` sees the end of the stream and tells of the loss.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.channel.send(jobs.encode(message))

    def _start_calls(self) -> None:
        while self._waiting and self.idle > 0:
            call = self._waiting.popleft()
            call.parts.clear()
            job = self.new_job()
            self._send(self._least_busy(), job, {"id": job, **call.message}, call)

    def _adopt(self, forked: Forked) -> _Worker:
        now = trio.current_time()
        return _Worker(forked.pid, forked.channel, self._threads, forked.process, now)

    async def _spawn(self) -> _Worker:
        """A new worker, however long it takes: readers wait, and have their own deadline."""
        told = ""
        while True:
            async with self._fork_lock:  # one question at a time on the control socket
                assert self._spawner is not None
                try:
                    forked = await fork_worker(self._spawner, self._threads)
                except CannotStart as error:
                    if str(error) != told:
                        told = str(error)
                        log.error("no worker can be started: %s", error)  # noqa: TRY400
                else:
                    if forked is not None:
                        return self._adopt(forked)
                    await self._restart_spawner(self._spawner)
                    continue
            await trio.sleep(RESPAWN_PAUSE_S)

    async def _end_silent(self) -> None:
        """Kill workers that owe answers and do not speak; `_attend` replaces them."""
        while True:
            due_s = trio.current_time() + SILENT_LOOK_S
            await trio.sleep_until(due_s)
            now = trio.current_time()
            if now - due_s > SILENT_LOOK_S / 2:
                continue  # we stood still ourselves: there may be much to hear yet
            for worker in self._workers:
                if worker.jobs and now - worker.heard_s > SILENT_S:
                    log.error(
                        "worker %d says nothing for %.0f s: it is killed", worker.pid, SILENT_S
                    )
                    with contextlib.suppress(ProcessLookupError):  # dead: its channel tells
                        signal.pidfd_send_signal(worker.process, signal.SIGKILL)

    async def _attend_spawner(self) -> None:
        """Put another spawner in the place of one that died; its workers live on."""
        while True:
            spawner = self._spawner
            assert spawner is not None
            await spawner.wait()
            async with self._fork_lock:
                if self._spawner is spawner:
                    await self._restart_spawner(spawner)

    async def _restart_spawner(self, dead: Spawner) -> None:
        log.warning("the worker spawner died; starting it again")
        await dead.end()  # one that hangs would be waited for in vain
        try:
            self._spawner = await start_spawner(dead.arena_fd, dead.job_fd)
            dead.close()
        except FusefsError as error:
            log.error("the worker spawner does not start: %s", error)  # noqa: TRY400 - a sentence
            await trio.sleep(RESPAWN_PAUSE_S)

    async def _attend(
        self, worker: _Worker, on_read: ReadHandler, on_idle: Callable[[], None]
    ) -> None:
        """Receive from one worker; if it dies, give back its jobs and put another in its place."""
        while True:
            if await self._receive(worker, on_read, on_idle):
                continue
            log.warning("worker %d died with %d jobs; replacing it", worker.pid, len(worker.jobs))
            self._workers.remove(worker)
            worker.close()
            self._counters.workers_replaced += 1
            lost, worker.jobs = worker.jobs, {}
            await trio.sleep(RESPAWN_PAUSE_S if self._counters.workers_replaced > 1 else 0)
            worker = await self._spawn()
            self._workers.append(worker)
            for job, call in lost.items():
                self._give_back(job, call, on_read)
            self._start_calls()
            on_idle()

    def _give_back(self, job: int, call: _Call | None, on_read: ReadHandler) -> None:
        if call is None:
            on_read({"id": job, "lost": True})
            return
        call.attempts += 1
        if call.attempts < CALL_ATTEMPTS_MAX:
            self._waiting.appendleft(call)
        else:
            call.error = StoreUnavailable("workers died while asking the store")
            call.done.set()

    async def _receive(
        self, worker: _Worker, on_read: ReadHandler, on_idle: Callable[[], None]
    ) -> bool:
        """Take all that has arrived; False once the worker is gone."""
        await trio.lowlevel.wait_readable(worker.channel)
        finished = False
        while True:
            try:
                data = worker.channel.recv(jobs.MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except ConnectionResetError:
                return False
            if not data:
                return False
            worker.heard_s = trio.current_time()
            finished |= self._take(worker, jobs.decode(data), on_read)
        if finished:
            self._start_calls()
            on_idle()
        return True

    def _take(self, worker: _Worker, message: jobs.Message, on_read: ReadHandler) -> bool:
        """One message; True if it freed a thread."""
        job = message["id"]
        call = worker.jobs[job]
        last = "ok" in message or "error" in message
        if last:
            del worker.jobs[job]
        if call is None:
            on_read(message)
        elif "part" in message:
            call.parts.append(message["part"])
        elif last:
            if "error" in message:
                call.error = from_wire(message["error"])
            call.result = message.get("ok")
            call.done.set()
        return last
