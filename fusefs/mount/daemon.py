"""The process that serves one mount.

    python -m fusefs.mount.daemon CHANNEL_FD JOB_FD MEMORY_FD SPAWNER_FD

Composition root: builds the parts, gives each its task, handles signals. It is told what to do by
the keeper: `begin` (the first daemon of a mount checks the source; a later one needs no store to
take over), `init` (it says what it would answer to FUSE_INIT), `serve` (it receives the connection
and serves until the mount is gone or SIGTERM comes). It touches no network and never a path inside
its mount.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pyfuse3
import trio

from fusefs.config import Config, config_from_json_dict
from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.audit import Auditor
from fusefs.engine.blocks import File, FileTable
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.guide import Guide, Names
from fusefs.engine.handed import Groups, Pins
from fusefs.engine.hinted import HintedPlans
from fusefs.engine.machine import (
    Cores,
    cores_available,
    memory_available,
    name_process,
    page_cache_room,
    raise_descriptor_limit,
)
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache, start_pusher
from fusefs.engine.pool import Pool, Started
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.privileges import SERVER, settle
from fusefs.engine.reader import Reader
from fusefs.engine.slots import Slots
from fusefs.errors import ConfigError, FusefsError
from fusefs.hints.peer import Desk
from fusefs.hints.plans import Engine as HintEngine
from fusefs.hints.server import Server
from fusefs.hints.verbs import Verbs
from fusefs.mount.channel import receive
from fusefs.mount.control import Control, EngineParts, Status
from fusefs.mount.folder import HintFolder
from fusefs.mount.job import read_job_dict
from fusefs.mount.kernel import mount_rows
from fusefs.mount.operations import Hooks, Operations
from fusefs.mount.requests import Requests
from fusefs.mount.session import Session
from fusefs.mount.stuck import end_stuck_requests
from fusefs.mount.tuning import HEAD_READ_AHEAD_KB, ReadAhead, tune, why_not_push
from fusefs.mount.vitals import BEAT_S, VITALS_BYTES, Vitals, map_memory
from fusefs.objects import ObjectMeta
from fusefs.policy.budget import (
    WORKERS_INCLUDED,
    arena_budget,
    memory_limit,
    within_descriptors,
)
from fusefs.store.source import parse_source
from fusefs.telemetry.counters import Counters
from fusefs.telemetry.log import RecentWarnings, configure_log
from fusefs.tree.journal import Journal
from fusefs.tree.tree import Tree

log = logging.getLogger("fusefs.daemon")

TASKS_MARGIN = 64
"""FUSE tasks beyond `max_background`: look-ups and page faults find one while READs wait."""

COMPANION_LEAD_FRACTION = 4
"""Small files that came along and are not read yet take at most a quarter of what prefetch may."""

WAITS_FRACTION = 8
"""Blocks that hints wait for hold at most an eighth of the slots; waiting READs, up to half."""

PUSHERS_MIN, PUSHERS_MAX = 2, 8
"""Threads that push, one for four cores: one writes 3 GB/s, as much as four workers fetch. Two at
least, since one may have to wait for a READ."""


class Daemon:
    """The parts of one mount, put together.

    The mutable state of Daemon is in its parts, and the mount's device, once it is known.
    """

    def __init__(
        self, job: dict[str, Any], config: Config, recent: RecentWarnings, memory: memoryview
    ) -> None:
        self._config = config
        self._vitals = Vitals(memory)
        engine = config.engine
        self._source = parse_source(job["source"], self._config)
        self._counters = Counters()
        workers = engine.workers or min(cores_available(), WORKERS_INCLUDED)
        limit = memory_limit(engine.memory, memory_available())
        budget = arena_budget(
            limit, workers, engine.block_size, engine.range_size, engine.connections
        )
        self._budget = within_descriptors(budget, workers, raise_descriptor_limit())
        self._arena = Arena(self._budget)
        self._read_ahead = ReadAhead(config.kernel)
        threads = -(-self._budget.connections_max // workers)
        self._pool = Pool(workers, threads, self._counters)
        self._pace = Pace(self._budget, self._counters, Cores(lambda: self._pool.pids).are_full)
        self._files = FileTable(self._budget.block_size, self._budget.range_blocks_max)
        self._slots = Slots(self._budget, self._files, self._counters)
        self._fetcher = Fetcher(
            self._budget,
            self._slots,
            self._pool,
            self._counters,
            self._object_changed,
            lambda blocks: self._pagecache.landed(blocks),  # noqa: PLW0108 - it is made below
            self._pace,
        )
        self._auditor = Auditor(
            self._fetcher.checking,
            self._slots,
            self._pool,
            self._budget.block_size,
            self._fetcher.condemn,
        )
        self._pagecache = PageCache(
            self._arena,
            self._slots,
            self._counters,
            lambda file: self._tree.find(file.meta.id),
            page_cache_room,
            self._fetcher.wake,
        )
        self._hinted = HintedPlans(self._files, self._slots, self._unhinted, self._fetcher.wake)
        self._prefetcher = Prefetcher(
            self._files,
            self._hinted,
            min(config.kernel.read_ahead_kb, HEAD_READ_AHEAD_KB) * 1024,
            self._budget.lead_first // COMPANION_LEAD_FRACTION,
            self._fetcher.wake,
        )
        self._names = Names(
            self._pool, self._counters, self._pace.throttled, engine.read_deadline_s
        )
        self._tree = Tree(
            self._names,
            self._source.prefix,
            config.tree,
            self._counters,
            trio.current_time,
            Journal(memory[VITALS_BYTES:]),
        )
        self._status = Status(
            job,
            EngineParts(self._budget, self._pool, self._slots, self._pace, self._pagecache),
            self._counters,
            recent,
            self._vitals,
        )
        self._requests = Requests(self._counters, engine.read_deadline_s)
        self._folder = HintFolder(config.mount.umask)
        self._device, self._is_visible = "", True
        self._hints = Server(self._hint_desk(), self._find_device)
        self._guide = Guide(self._pool, self._fetcher, self._arena, self._siblings, self._counters)

    def _hint_desk(self) -> Desk:
        engine = HintEngine(
            self._tree,
            self._source.prefix,
            self._hinted,
            self._fetcher,
            self._arena,
            trio.CapacityLimiter(max(1, self._budget.slots // WAITS_FRACTION)),
            Pins(self._budget),
            Groups(),
        )
        return Desk(engine, self._budget.block_size, self._status.stats)

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
            await self._pool.start(self._arena.fd, job_fd, started)
        async with trio.open_nursery() as nursery:
            run_pool = partial(self._pool.run, self._fetcher.on_read, self._fetcher.wake)
            if is_first:
                nursery.start_soon(run_pool)
            else:
                start = partial(self._pool.start_anyhow, self._arena.fd, job_fd, started)
                nursery.start_soon(_one_after_the_other, start, run_pool)
            error = await self._checked() if is_first else None
            if error is None:
                await keeper.send(jobs.encode({"checked": True}))
                await self._take_over(keeper)
            nursery.cancel_scope.cancel()
        self._pool.close()
        if error is not None:
            raise error

    async def _checked(self) -> FusefsError | None:
        try:
            await self._names.check(self._source.prefix)
        except FusefsError as error:
            return error
        return None

    async def _take_over(self, keeper: trio.socket.SocketType) -> None:
        """Be ready, wait for our turn, and serve."""
        operations = self._operations()
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
        self._counters.restore(self._vitals.counters())
        self._tree.restore()
        self._tune()
        if told["after"] is not None:
            log.warning("the daemon before this one %s; this one took over", told["after"])
        session.open(init_request, fds[0], told["resend"])
        await self._serve(fds[0], keeper, (told, fds[1:]), operations)

    def _operations(self) -> Operations:
        reader = Reader(
            self._arena,
            self._slots,
            self._fetcher,
            self._prefetcher,
            self._counters,
            self._pagecache,
            self._config.engine.read_deadline_s,
        )
        return Operations(
            self._tree,
            self._files,
            reader,
            self._prefetcher,
            Control(self._status, Verbs(self._tree, self._files, self._hinted), self._folder),
            self._config,
            Hooks(self._read_ahead.opening, self._requests),
        )

    async def _serve(
        self,
        fuse_fd: int,
        keeper: trio.socket.SocketType,
        told: tuple[jobs.Message, list[int]],
        operations: Operations,
    ) -> None:
        self._status.gauges += [operations.gauges, self._hints.gauges]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fetcher.run, self._prefetcher.next_run)
                nursery.start_soon(self._prefetcher.run, self._guide)
                nursery.start_soon(self._hinted.run)
                nursery.start_soon(self._requests.run, operations.describe)
                nursery.start_soon(self._auditor.run)
                nursery.start_soon(_end_on_sigterm)
                nursery.start_soon(self._beat)
                self._take_socket(*told, nursery)
                nursery.start_soon(self._watch_keeper, keeper, nursery)
                if not told[0]["resend"]:
                    held = self._requests.count_under_way
                    nursery.start_soon(end_stuck_requests, self._device, fuse_fd, held)
                if self._config.kernel.push:
                    threads = min(PUSHERS_MAX, max(PUSHERS_MIN, cores_available() // 4))
                    start = partial(start_pusher, fuse_fd, self._arena.fd, threads)
                    nursery.start_soon(self._pagecache.run, start)
                await keeper.send(jobs.encode({"serving": True}))
                max_tasks = self._config.kernel.max_background + TASKS_MARGIN
                await pyfuse3.main(max_tasks=max_tasks)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)

    async def _beat(self) -> None:
        """Show the keeper that this loop goes round, and leave the counters to who comes next."""
        while True:
            self._vitals.beat()
            self._vitals.write_counters(self._counters.snapshot() | self._tree.known())
            await trio.sleep(BEAT_S)

    def _tune(self) -> None:
        """Set the kernel's knobs: FUSE_INIT is answered, and no file of ours is open."""
        knobs = self._status.knobs = tune(self._config.kernel, self._device)
        if knobs["read_ahead_kb"].set:
            self._read_ahead.begin(self._device)
        self._pagecache.allow(why_not_push(self._config.kernel, self._device))

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
        self._pagecache.allow("the keeper is gone")

    def _take_socket(self, told: jobs.Message, fds: list[int], nursery: trio.Nursery) -> None:
        """The hints' listening socket, or why there is none (yet: a mount begins without)."""
        if told["listener"]:
            self._folder.seal(None)
            nursery.start_soon(self._hints.run, socket.socket(fileno=fds[0]))
        elif told["why"]:
            self._folder.seal(str(told["why"]))

    def _find_device(self) -> str | None:
        """The mount's device, for as long as it is mounted somewhere we can see."""
        if not self._is_visible:  # another container's: we end with its connection
            return self._device
        return self._device if any(r.device == self._device for r in mount_rows()) else None

    def _unhinted(self, file: File) -> None:
        self._prefetcher.closed(file)

    def _object_changed(self, file: File) -> None:
        self._tree.mark_stale(file.meta.id)

    def _siblings(self, file: File) -> Sequence[ObjectMeta]:
        try:
            entries = self._tree.siblings(file.inode) or ()
        except FusefsError:
            return ()  # the kernel let go of the file in the meantime
        return [entry.meta for entry in entries if entry.meta is not None]


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
