"""The process that serves one mount.

    python -m fusefs.mount.daemon CHANNEL_FD JOB_FD MEMORY_FD SPAWNER_FD

Has the parts built (`fusefs.mount.parts`), gives each its task, handles signals. It is told what to
do by the keeper: `begin` (the first daemon of a mount checks the source; a later one needs no store
to take over), `init` (it says what it would answer to FUSE_INIT), `serve` (it receives the
connection and serves until the mount is gone or SIGTERM comes). It touches no network and never a
path inside its mount.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pyfuse3
import trio

from fusefs.config import Config, config_from_json_dict
from fusefs.engine import jobs
from fusefs.engine.forking import Started
from fusefs.engine.machine import cores_available, name_process
from fusefs.engine.pagecache import start_pusher
from fusefs.engine.privileges import SERVER, settle
from fusefs.errors import ConfigError, FusefsError
from fusefs.mount.channel import receive
from fusefs.mount.job import read_job_dict
from fusefs.mount.kernel import mount_rows
from fusefs.mount.operations import Operations
from fusefs.mount.parts import Parts
from fusefs.mount.session import Session
from fusefs.mount.stuck import end_stuck_requests
from fusefs.mount.tuning import tune, why_not_push
from fusefs.mount.vitals import BEAT_S, map_memory
from fusefs.telemetry.log import RecentWarnings, configure_log

log = logging.getLogger("fusefs.daemon")

TASKS_MARGIN = 64
"""FUSE tasks beyond `max_background`: look-ups and page faults find one while READs wait."""

PUSHERS_MIN, PUSHERS_MAX = 2, 8
"""Threads that push, one for four cores: one writes 3 GB/s, as much as four workers fetch. Two at
least, since one may have to wait for a READ."""


class Daemon:
    """The life of one mount's process.

    The mutable state of Daemon is in its parts, and the mount's device, once it is known.
    """

    def __init__(
        self, job: dict[str, Any], config: Config, recent: RecentWarnings, memory: memoryview
    ) -> None:
        self._config = config
        self._parts = Parts(job, config, recent, memory, self._find_device)
        self._device, self._is_visible = "", True

    async def run(
        self, keeper: trio.socket.SocketType, job_fd: int, control: socket.socket
    ) -> None:
        """Get the mount from the keeper, and serve it. `control` is our end of the spawner's.

        Raises FusefsError if the source cannot be served; then nothing was mounted.
        """
        told, _ = await receive(keeper)
        begin, _ = await receive(keeper)
        if not begin:
            return
        is_first = begin["check"]
        started = Started(told["spawner"], control)
        if is_first:
            await self._parts.pool.start(self._parts.arena.fd, job_fd, started)
        async with trio.open_nursery() as nursery:
            run_pool = partial(
                self._parts.pool.run, self._parts.fetcher.on_read, self._parts.fetcher.wake
            )
            if is_first:
                nursery.start_soon(run_pool)
            else:
                start = partial(
                    self._parts.pool.start_anyhow, self._parts.arena.fd, job_fd, started
                )
                nursery.start_soon(_one_after_the_other, start, run_pool)
            error = await self._checked() if is_first else None
            if error is None:
                await keeper.send(jobs.encode({"checked": True}))
                await self._take_over(keeper)
            nursery.cancel_scope.cancel()
        self._parts.pool.close()
        if error is not None:
            raise error

    async def _checked(self) -> FusefsError | None:
        try:
            await self._parts.names.check(self._parts.source.prefix)
        except FusefsError as error:
            return error
        return None

    async def _take_over(self, keeper: trio.socket.SocketType) -> None:
        """Be ready, wait for our turn, and serve."""
        operations = self._parts.operations()
        session = Session(operations)
        operations.on_init = session.on_init
        told, _ = await receive(keeper)
        if not told:
            return
        init_request = bytes.fromhex(told["init"])
        reply = await session.rehearse(init_request)
        gc.collect()
        gc.freeze()  # what start-up made lives for ever: later collections need not look at it
        await keeper.send(jobs.encode({"ready": reply.hex()}))
        told, fds = await receive(keeper)
        if not told:
            return
        # The daemon before us is dead: from here on all that it knew is ours.
        self._device = told["device"]
        self._is_visible = told["visible"]
        self._parts.counters.restore(self._parts.vitals.counters())
        self._parts.tree.restore()
        self._tune()
        if told["after"] is not None:
            log.warning("the daemon before this one %s; this one took over", told["after"])
        session.open(init_request, fds[0], told["resend"])
        await self._serve(fds[0], keeper, (told, fds[1:]), operations)

    async def _serve(
        self,
        fuse_fd: int,
        keeper: trio.socket.SocketType,
        told: tuple[jobs.Message, list[int]],
        operations: Operations,
    ) -> None:
        self._parts.status.gauges += [operations.gauges, self._parts.hints.gauges]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._parts.fetcher.run, self._parts.prefetcher.next_run)
                nursery.start_soon(self._parts.prefetcher.run, self._parts.guide)
                nursery.start_soon(self._parts.hinted.run)
                nursery.start_soon(self._parts.requests.run, operations.describe)
                nursery.start_soon(self._parts.auditor.run)
                nursery.start_soon(_end_on_sigterm)
                nursery.start_soon(self._beat)
                self._take_socket(*told, nursery)
                nursery.start_soon(self._watch_keeper, keeper, nursery)
                if not told[0]["resend"]:
                    held = self._parts.requests.count_under_way
                    nursery.start_soon(end_stuck_requests, self._device, fuse_fd, held)
                if self._config.kernel.push:
                    threads = min(PUSHERS_MAX, max(PUSHERS_MIN, cores_available() // 4))
                    start = partial(start_pusher, fuse_fd, self._parts.arena.fd, threads)
                    nursery.start_soon(self._parts.pagecache.run, start)
                await keeper.send(jobs.encode({"serving": True}))
                max_tasks = self._config.kernel.max_background + TASKS_MARGIN
                await pyfuse3.main(max_tasks=max_tasks)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)

    async def _beat(self) -> None:
        """Show the keeper that this loop goes round, and leave the counters to who comes next."""
        while True:
            self._parts.vitals.beat()
            known = self._parts.tree.known()
            self._parts.vitals.write_counters(self._parts.counters.snapshot() | known)
            await trio.sleep(BEAT_S)

    def _tune(self) -> None:
        """Set the kernel's knobs: FUSE_INIT is answered, and no file of ours is open."""
        knobs = self._parts.status.knobs = tune(self._config.kernel, self._device)
        if knobs["read_ahead_kb"].set:
            self._parts.read_ahead.begin(self._device)
        self._parts.pagecache.allow(why_not_push(self._config.kernel, self._device))

    async def _watch_keeper(self, keeper: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Take the hints' socket from it; and notice its end.

        Without its keeper a mount goes on; but nobody is left who could abort it.
        """
        with contextlib.suppress(ConnectionResetError):  # it died before it read our last word
            while True:
                told, fds = await receive(keeper)
                if not told:
                    break
                self._take_socket(told, fds, nursery)
        self._parts.pagecache.allow("the keeper is gone")

    def _take_socket(self, told: jobs.Message, fds: list[int], nursery: trio.Nursery) -> None:
        """The hints' listening socket, or why there is none (yet: a mount begins without)."""
        if told["listener"]:
            self._parts.folder.seal(None)
            nursery.start_soon(self._parts.hints.run, socket.socket(fileno=fds[0]))
        elif told["why"]:
            self._parts.folder.seal(str(told["why"]))

    def _find_device(self) -> str | None:
        """The mount's device, for as long as it is mounted somewhere we can see."""
        if not self._is_visible:  # another container's: we end with its connection
            return self._device
        return self._device if any(r.device == self._device for r in mount_rows()) else None


async def _one_after_the_other(*tasks: Callable[[], Awaitable[None]]) -> None:
    for task in tasks:
        await task()


async def _end_on_sigterm() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def main(channel_fd: int, job_fd: int, memory_fd: int, spawner_fd: int) -> int:
    """Serve one mount; exit status 0 once it was unmounted, or somebody else is to serve it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's to act on
    name_process("fusefs-daemon")
    channel, control = socket.socket(fileno=channel_fd), socket.socket(fileno=spawner_fd)
    job = read_job_dict(job_fd)
    config = config_from_json_dict(job["config"])

    async def start() -> None:
        keeper = trio.socket.from_stdlib_socket(channel)
        try:
            recent = configure_log(config.log.level, config.log.file, job["foreground"])
            # Its arena is the last that takes rights.
            daemon = Daemon(job, config, recent, map_memory(memory_fd))
            for refused in settle(SERVER):
                log.info("not confined as it should be: %s", refused)
            await daemon.run(keeper, job_fd, control)
        except FusefsError as error:
            status = 2 if isinstance(error, ConfigError) else 1
            said = {"error": str(error), "status": status, "class": type(error).__name__}
            await keeper.send(jobs.encode(said))

    try:
        trio.run(start)
    except Exception:  # the last stop: what ends the daemon must stand in the log
        log.exception("the daemon ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:5])))
