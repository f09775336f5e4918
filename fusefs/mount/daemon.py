"""The process that serves one mount: `python -m fusefs.mount.daemon CHANNEL_FD JOB_FD`.

Composition root: builds the parts, gives each its task, handles signals. It is told what to do by
the keeper: it checks the source, says so, receives the /dev/fuse descriptor, and serves until the
mount is gone. It touches no network and never a path inside its mount.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyfuse3
import trio

from fusefs.config import Config, config_from_json_dict
from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.audit import Auditor
from fusefs.engine.blocks import Block, File, FileTable
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
)
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache, start_pusher
from fusefs.engine.pool import Pool
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.reader import Reader
from fusefs.engine.slots import Slots
from fusefs.errors import ConfigError, FusefsError
from fusefs.hints.peer import Desk
from fusefs.hints.plans import Engine as HintEngine
from fusefs.hints.server import Server
from fusefs.hints.verbs import Verbs
from fusefs.mount.control import Control, EngineParts, Status
from fusefs.mount.folder import HintFolder
from fusefs.mount.kernel import find_mount, mount_rows
from fusefs.mount.operations import Hooks, Operations
from fusefs.mount.tuning import HEAD_READ_AHEAD_KB, ReadAhead, may_abort, tune
from fusefs.objects import ObjectMeta
from fusefs.policy.budget import (
    WORKERS_INCLUDED,
    arena_budget,
    memory_limit,
)
from fusefs.store.source import parse_source
from fusefs.telemetry.counters import Counters
from fusefs.telemetry.log import RecentWarnings, configure_log
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

    def __init__(self, job: dict[str, Any], config: Config, recent: RecentWarnings) -> None:
        self._config = config
        self._mountpoint = job["mountpoint"]
        engine = config.engine
        self._source = parse_source(job["source"], self._config)
        self._counters = Counters()
        workers = engine.workers or min(cores_available(), WORKERS_INCLUDED)
        limit = memory_limit(engine.memory, memory_available())
        self._budget = arena_budget(
            limit, workers, engine.block_size, engine.range_size, engine.connections
        )
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
            self._landed,
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
        self._hinted = HintedPlans(
            self._files,
            self._slots,
            self._unhinted,
            self._fetcher.wake,
        )
        self._prefetcher = Prefetcher(
            self._files,
            self._hinted,
            min(config.kernel.read_ahead_kb, HEAD_READ_AHEAD_KB) * 1024,
            self._budget.lead_first // COMPANION_LEAD_FRACTION,
            self._fetcher.wake,
        )
        self._names = Names(self._pool, self._counters, self._pace.throttled)
        self._tree = Tree(
            self._names, self._source.prefix, config.tree, self._counters, trio.current_time
        )
        self._status = Status(
            job,
            EngineParts(self._budget, self._pool, self._slots, self._pace, self._pagecache),
            self._counters,
            recent,
        )
        self._folder = HintFolder(config.mount.umask)
        self._device: str | None = None
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

    async def run(self, keeper: trio.socket.SocketType, job_fd: int) -> None:
        """Check the source, get the mount from the keeper, serve it.

        Raises FusefsError if the source cannot be served; then nothing was mounted.
        """
        await self._pool.start(self._arena.fd, job_fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pool.run, self._fetcher.on_read, self._fetcher.wake)
            error = await self._checked()
            if error is None:
                await keeper.send(jobs.encode({"checked": True}))
                _, fuse_fd = await _receive(keeper)
                if fuse_fd is not None:
                    await self._serve(fuse_fd, keeper)
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

    async def _serve(self, fuse_fd: int, keeper: trio.socket.SocketType) -> None:
        reader = Reader(
            self._arena,
            self._slots,
            self._fetcher,
            self._prefetcher,
            self._counters,
            self._pagecache,
            self._config.engine.read_deadline_s,
        )
        operations = Operations(
            self._tree,
            self._files,
            reader,
            self._prefetcher,
            Control(self._status, Verbs(self._tree, self._files, self._hinted), self._folder),
            self._config,
            Hooks(self._tune, self._read_ahead.opening),
        )
        pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
        gc.collect()
        gc.freeze()  # what start-up made lives for ever: later collections need not look at it
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fetcher.run, self._prefetcher.next_run)
                nursery.start_soon(self._prefetcher.run, self._guide)
                nursery.start_soon(self._hinted.run)
                nursery.start_soon(self._auditor.run)
                nursery.start_soon(_end_on_sigterm)
                nursery.start_soon(self._watch_keeper, keeper, nursery)
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

    def _tune(self) -> None:
        """Set the kernel's knobs; called inside the first request, so FUSE_INIT is over."""
        row = find_mount(self._mountpoint)
        if row is not None:
            knobs = self._status.knobs = tune(self._config.kernel, row.device)
            if knobs["read_ahead_kb"].set:
                self._read_ahead.begin(row.device)
            self._pagecache.allow(self._why_not_push(row.device))

    async def _watch_keeper(self, keeper: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Take the hints' socket from it; and notice its end.

        Without its keeper a mount goes on; but nobody is left who could abort it.
        """
        with contextlib.suppress(ConnectionResetError):  # it died before it read our last word
            while True:
                data, fd = await _receive(keeper)
                if not data:
                    break
                said = jobs.decode(data)
                if fd is None:
                    self._folder.seal(str(said["why"]))
                else:
                    self._folder.seal(None)
                    nursery.start_soon(self._hints.run, socket.socket(fileno=fd))
        self._pagecache.allow("the keeper is gone")

    def _find_device(self) -> str | None:
        """The mount's device, for as long as it is mounted somewhere we can see."""
        if self._device is None:
            row = find_mount(self._mountpoint)
            self._device = row.device if row is not None else None
        return self._device if any(r.device == self._device for r in mount_rows()) else None

    def _why_not_push(self, device: str) -> str | None:
        if not self._config.kernel.push:
            return "kernel.push is off"
        if not may_abort(device):
            return "/sys/fs/fuse/connections is not writable: mount fusectl there"
        return None

    def _landed(self, blocks: list[Block]) -> None:
        self._pagecache.landed(blocks)

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


async def _end_on_sigterm() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            pyfuse3.terminate()


async def _receive(keeper: trio.socket.SocketType) -> tuple[bytes, int | None]:
    """What the keeper says, nothing if it gave up, and the descriptor that comes with it."""
    data, ancillary, _, _ = await keeper.recvmsg(65536, socket.CMSG_SPACE(4))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fd: int = array.array("i", payload[:4])[0]
            os.set_inheritable(fd, False)
            return data, fd
    return data, None


def main(channel_fd: int, job_fd: int) -> int:
    """Serve one mount; exit status 0 once it was unmounted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's to act on
    name_process("fusefs-daemon")
    channel = socket.socket(fileno=channel_fd)
    with open(job_fd, closefd=False) as file:
        file.seek(0)
        job = json.load(file)
    config = config_from_json_dict(job["config"])
    recent = configure_log(config.log.level, config.log.file, job["foreground"])

    async def start() -> None:
        keeper = trio.socket.from_stdlib_socket(channel)
        try:
            await Daemon(job, config, recent).run(keeper, job_fd)
        except FusefsError as error:
            status = 2 if isinstance(error, ConfigError) else 1
            await keeper.send(jobs.encode({"error": str(error), "status": status}))

    try:
        trio.run(start)
    except Exception:  # the last stop: what ends the daemon must stand in the log
        log.exception("the daemon ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
