"""The parts of one mount, put together; none of them runs yet.

Composition only: who knows whom, and what each may use of the memory, the connections and the
descriptors there are. `fusefs.mount.daemon` gives them their tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from fusefs.config import Config, EngineConfig
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
    page_cache_room,
    raise_descriptor_limit,
)
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache
from fusefs.engine.pool import Pool
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.reader import Reader
from fusefs.engine.slots import Slots
from fusefs.errors import FusefsError
from fusefs.hints.peer import Desk
from fusefs.hints.plans import Engine as HintEngine
from fusefs.hints.server import Server
from fusefs.hints.verbs import Verbs
from fusefs.mount.control import Control, EngineParts, Status
from fusefs.mount.folder import HintFolder
from fusefs.mount.operations import Hooks, Operations
from fusefs.mount.requests import Requests
from fusefs.mount.tuning import HEAD_READ_AHEAD_KB, ReadAhead
from fusefs.mount.vitals import VITALS_BYTES, Vitals
from fusefs.objects import ObjectMeta
from fusefs.policy.budget import (
    WORKERS_INCLUDED,
    ArenaBudget,
    arena_budget,
    memory_limit,
    within_descriptors,
)
from fusefs.store.source import parse_source
from fusefs.telemetry.counters import Counters
from fusefs.telemetry.log import RecentWarnings
from fusefs.tree.journal import Journal
from fusefs.tree.tree import Tree

COMPANION_LEAD_FRACTION = 4
"""Small files that came along and are not read yet take at most a quarter of what prefetch may."""

WAITS_FRACTION = 8
"""Blocks that hints wait for hold at most an eighth of the slots; waiting READs, up to half."""


def _budget_of(engine: EngineConfig, workers: int) -> ArenaBudget:
    """What the arena may take of what there is. Raises FusefsError if that is too little."""
    limit = memory_limit(engine.memory, memory_available())
    budget = arena_budget(limit, workers, engine.block_size, engine.range_size, engine.connections)
    return within_descriptors(budget, workers, raise_descriptor_limit())


class Parts:
    """Everything that serves one mount.

    The mutable state of Parts is in its parts.
    """

    def __init__(
        self,
        job: dict[str, Any],
        config: Config,
        recent: RecentWarnings,
        memory: memoryview,
        find_device: Callable[[], str | None],
    ) -> None:
        self.config = config
        self.vitals = Vitals(memory)
        engine = config.engine
        self.source = parse_source(job["source"], self.config)
        self.counters = Counters()
        workers = engine.workers or min(cores_available(), WORKERS_INCLUDED)
        self.budget = _budget_of(engine, workers)
        self.arena = Arena(self.budget)
        self.read_ahead = ReadAhead(config.kernel)
        threads = -(-self.budget.connections_max // workers)
        self.pool = Pool(workers, threads, self.counters)
        self.pace = Pace(self.budget, self.counters, Cores(lambda: self.pool.pids).are_full)
        self.files = FileTable(self.budget.block_size, self.budget.range_blocks_max)
        self.slots = Slots(self.budget, self.files, self.counters)
        self.fetcher = Fetcher(
            self.budget,
            self.slots,
            self.pool,
            self.counters,
            self._object_changed,
            lambda blocks: self.pagecache.landed(blocks),  # noqa: PLW0108 - it is made below
            self.pace,
        )
        checking, block_size = self.fetcher.checking, self.budget.block_size
        self.auditor = Auditor(checking, self.slots, self.pool, block_size, self.fetcher.condemn)
        self.pagecache = PageCache(
            self.arena,
            self.slots,
            self.counters,
            lambda file: self.tree.find(file.meta.id),
            page_cache_room,
            self.fetcher.wake,
        )
        self.hinted = HintedPlans(self.files, self.slots, self._unhinted, self.fetcher.wake)
        self.prefetcher = Prefetcher(
            self.files,
            self.hinted,
            min(config.kernel.read_ahead_kb, HEAD_READ_AHEAD_KB) * 1024,
            self.budget.lead_first // COMPANION_LEAD_FRACTION,
            self.fetcher.wake,
        )
        self.names = Names(self.pool, self.counters, self.pace.throttled, engine.read_deadline_s)
        self.tree = Tree(
            self.names,
            self.source.prefix,
            config.tree,
            self.counters,
            trio.current_time,
            Journal(memory[VITALS_BYTES:]),
        )
        engine_parts = EngineParts(self.budget, self.pool, self.slots, self.pace, self.pagecache)
        self.status = Status(job, engine_parts, self.counters, recent, self.vitals)
        self.requests = Requests(self.counters, engine.read_deadline_s)
        self.folder = HintFolder(config.mount.umask)
        self.hints = Server(self._hint_desk(), find_device)
        self.guide = Guide(self.pool, self.fetcher, self.arena, self._siblings, self.counters)

    def _hint_desk(self) -> Desk:
        engine = HintEngine(
            self.tree,
            self.source.prefix,
            self.hinted,
            self.fetcher,
            self.arena,
            trio.CapacityLimiter(max(1, self.budget.slots // WAITS_FRACTION)),
            Pins(self.budget),
            Groups(),
        )
        return Desk(engine, self.budget.block_size, self.status.stats)

    def operations(self) -> Operations:
        """The handlers of the kernel's requests, over these parts."""
        reader = Reader(
            self.arena,
            self.slots,
            self.fetcher,
            self.prefetcher,
            self.counters,
            self.pagecache,
            self.config.engine.read_deadline_s,
        )
        return Operations(
            self.tree,
            self.files,
            reader,
            self.prefetcher,
            Control(self.status, Verbs(self.tree, self.files, self.hinted), self.folder),
            self.config,
            Hooks(self.read_ahead.opening, self.requests),
        )

    def _unhinted(self, file: File) -> None:
        self.prefetcher.closed(file)

    def _object_changed(self, file: File) -> None:
        self.tree.mark_stale(file.meta.id)

    def _siblings(self, file: File) -> Sequence[ObjectMeta]:
        try:
            entries = self.tree.siblings(file.inode) or ()
        except FusefsError:
            return ()  # the kernel let go of the file in the meantime
        return [entry.meta for entry in entries if entry.meta is not None]
