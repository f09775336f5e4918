"""Getting blocks into the arena: single flight, order, retries.

`demand` and `release` only change bookkeeping; slots are taken, and jobs handed out, in one place:
the pump, a task of its own. Its one idea: a READ reply is written in the same step of the trio
thread in which its handler returns, and the pump runs in another step, so no slot is reused under a
reply.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import trio

from fusefs.engine import jobs
from fusefs.engine.blocks import Block, File, State
from fusefs.engine.checking import Checking
from fusefs.engine.hedges import Hedges, Run, Tries
from fusefs.engine.pace import Pace
from fusefs.engine.slots import Slots
from fusefs.errors import (
    CorruptData,
    FusefsError,
    ObjectChanged,
    StoreThrottled,
    StoreUnavailable,
    from_wire,
)
from fusefs.policy.backoff import backoff_s
from fusefs.policy.budget import ArenaBudget
from fusefs.policy.extents import extent_of
from fusefs.policy.slots import Rank
from fusefs.telemetry.counters import Counters

log = logging.getLogger("fusefs.fetcher")

CORRUPT_ATTEMPTS_MAX = 3
"""A lying answer may be one broken proxy connection; three in a row are the object's own trouble.
"""


class Workers(Protocol):
    """What the fetcher needs of the pool."""

    @property
    def idle(self) -> int:
        """How many jobs can start now."""

    def new_job(self) -> int:
        """A number no job has had."""

    def start_read(self, job: jobs.ReadJob) -> None:
        """Start a read; `idle` was > 0."""


class Found(Enum):
    """How a demand met the arena."""

    HIT = "all blocks were ready"
    JOIN = "waited for fetches under way"
    MISS = "started a fetch"


NextRun = Callable[[], tuple[File, int, int] | None]
"""Asks the prefetcher for the next run worth fetching: (file, first block, count)."""


_FIRST = Tries()


class Fetcher:
    """Blocks on their way.

    The mutable state of Fetcher is the runs in flight, the demand queue, the retry heap, what of it
    is due and not waited for (`_again`), what of both somebody has come for (`_joined`), and when
    files may be fetched ahead again.
    INVARIANT: one Block per (file, index) is QUEUED, FETCHING or READY; a FETCHING block is in
    exactly one run; a slot of a run is not taken until its worker said it is done or died.
    """

    def __init__(
        self,
        budget: ArenaBudget,
        slots: Slots,
        workers: Workers,
        counters: Counters,
        on_changed: Callable[[File], None],
        on_landed: Callable[[list[Block]], None],
        pace: Pace,
    ) -> None:
        self._budget = budget
        self._slots = slots
        self._workers = workers
        self._counters = counters
        self._on_changed = on_changed
        self._on_landed = on_landed
        self._pace = pace
        self._hedges = Hedges(slots, counters)
        self.checking = Checking(budget.block_size, counters)
        self._runs: dict[int, Run] = {}
        self._demand: deque[tuple[Block, Tries]] = deque()
        self._retries: list[tuple[float, int, list[Block], Tries]] = []
        self._again: deque[tuple[list[Block], Tries]] = deque()
        self._joined: set[Block] = set()
        self._resume_s: list[float] = []
        self._serial = itertools.count()
        self._wakeup = trio.Event()

    def demand(self, file: File, indices: range) -> tuple[list[Block], Found]:
        """The blocks, each pinned until `release`; missing ones are queued before all prefetch."""
        blocks = []
        found = Found.HIT
        for index in indices:
            block = file.blocks.get(index)
            if block is None:
                block = file.blocks[index] = Block(file, index)
                self._demand.append((block, _FIRST))
                found = Found.MISS
            elif block.state is not State.READY:
                found = Found.JOIN if found is Found.HIT else found
                if block.state is State.QUEUED and not block.waiters:
                    self._joined.add(block)
            block.waiters += 1
            blocks.append(block)
        if found is not Found.HIT:
            self._slots.reader_waits()
        if found is Found.MISS or self._joined:
            self.wake()
        return blocks, found

    def release(self, blocks: list[Block]) -> None:
        """Unpin what `demand` returned; the pump may use the room."""
        for block in blocks:
            block.waiters -= 1
        self.wake()

    def wake(self) -> None:
        """Let the pump look again."""
        self._wakeup.set()

    async def run(self, next_run: NextRun) -> None:
        """The pump: hand out work for ever."""
        while True:
            with trio.move_on_at(self._next_alarm()):
                await self._wakeup.wait()
            self._wakeup = trio.Event()
            self._requeue_due()
            self._pump(next_run)
            self._hedge()

    def on_read(self, message: jobs.Message) -> None:
        """A message of the pool about a read job."""
        run = self._runs[message["id"]]
        if "landed" in message:
            landed = message["landed"] // self._budget.block_size
            self._land(run, landed, message.get("sums"))
            return
        del self._runs[message["id"]]
        self._pace.ended()
        if "ok" in message:
            self._land(run, len(run.blocks), message["ok"])
            self._hedges.ended(run)
        elif "lost" in message:
            self._failed(run, StoreUnavailable("the worker that fetched this block died"))
        else:
            self._failed(run, from_wire(message["error"]))
        self.wake()

    # -- hand out ---------------------------------------------------------------------------------

    def _next_alarm(self) -> float:
        now = trio.current_time()
        while self._resume_s and self._resume_s[0] <= now:
            heapq.heappop(self._resume_s)
        alarms = self._resume_s[:1] + [due for due, *_ in self._retries[:1]]
        if self._pace.alarm_s > now:
            alarms.append(self._pace.alarm_s)
        if self._runs:
            alarms.append(self._hedges.look_s)
        return min(alarms, default=float("inf"))

    def _pump(self, next_run: NextRun) -> None:
        pace = self._pace
        while self._demand and self._workers.idle > 0 and pace.may_demand():
            blocks, tries = self._next_demand()
            if blocks and not self._start(blocks, tries, Rank.ACTIVE):
                return  # every slot is pinned or in flight; a release or an answer wakes us
        while self._again and self._workers.idle > 0 and pace.may_prefetch():
            if not self._start(*self._again.popleft(), Rank.IDLE):
                return
            pace.prefetched()
        while self._workers.idle > 0 and pace.may_prefetch():
            if not self._slots.may_prefetch(pace.range_blocks, pace.in_flight_max):
                return
            wanted = next_run()
            if wanted is None:
                return
            file, first, count = wanted
            blocks = [Block(file, first + i) for i in range(min(count, pace.range_blocks))]
            if not self._start(blocks, _FIRST, Rank.IDLE):
                return
            pace.prefetched()

    def _next_demand(self) -> tuple[list[Block], Tries]:
        """Queued blocks that one request can fetch: neighbours in one file, tried equally often."""
        block, tries = self._demand.popleft()
        blocks = [block]
        while self._demand and len(blocks) < self._pace.range_blocks:
            following, tried = self._demand[0]
            if following.file is not block.file or tried != tries:
                break
            if following.index != blocks[-1].index + 1:
                break
            blocks.append(self._demand.popleft()[0])
        return blocks, tries

    def _start(self, blocks: list[Block], tries: Tries, highest: Rank) -> bool:
        """Take slots and start fetching as many of `blocks` as fit next to each other."""
        count = self._slots.settle_in(blocks, highest)
        # The rest was queued by demand or a retry, or else prefetch is asked anew.
        rest = [block for block in blocks[count:] if block.file.has(block.index)]
        if highest is not Rank.IDLE:
            self._demand.extendleft((block, tries) for block in reversed(rest))
        elif rest:
            self._again.appendleft((rest, tries))
        if count:
            self._send(blocks[:count], tries)
        return count > 0

    def _hedge(self) -> None:
        """Start second runs for late ones, beside the limit: they are few."""
        now = trio.current_time()
        if not self._hedges.is_due(now):
            return
        while self._workers.idle > 0 and self._pace.alarm_s <= now:
            found = self._hedges.wanted(self._runs.values(), now)
            if found is None:
                return
            spares, late = found
            self._hedges.started(self._send(spares, late.tries), late)

    def _send(self, blocks: list[Block], tries: Tries) -> Run:
        """Fetch blocks that have neighbouring slots."""
        file = blocks[0].file
        extent = extent_of(blocks[0].index, len(blocks), self._budget.block_size, file.meta.size)
        job = self._workers.new_job()
        now = trio.current_time()
        run = self._runs[job] = Run(blocks, tries, now, now)
        self._pace.started(extent.size)
        self._counters.requests += 1
        self._counters.requests_read += 1
        at = blocks[0].slot * self._budget.block_size
        self._workers.start_read(jobs.ReadJob(job, file.meta.id, extent, at))
        return run

    # -- what comes back --------------------------------------------------------------------------

    def _land(self, run: Run, landed: int, sums: jobs.Message | None) -> None:
        now = trio.current_time()
        size = 0
        ready = []
        for position in range(run.landed, landed):
            size += run.blocks[position].extent.size
            block = self._hedges.winner(run, position)
            if block is not None:
                ready.append(block)
        file = run.blocks[0].file
        self.checking.landed(file, sums, ready)
        if file.is_wrong:
            # Nobody gets them: so whoever reads all of a file that is wrong meets the error.
            self._give_up(ready, file.changed)
            ready = []
        for block in ready:
            block.touched_s = now
            block.settle(State.READY)
        if size:
            run.blocks[0].file.setback.landed()
            self._counters.bytes_fetched += size
            self._pace.landed(size, run.told_s, is_first=run.landed == 0)
            self._hedges.landed(size, now - run.told_s, is_first=run.landed == 0)
            run.told_s, run.landed = now, landed
        if ready and file.suspicion is None:
            self._on_landed(ready)

    def _failed(self, run: Run, error: FusefsError) -> None:
        """Retry what may succeed later, fail the rest. The worker has stopped writing."""
        self._counters.fetch_errors += 1
        self.checking.failed(error)
        if isinstance(error, StoreThrottled):
            self._pace.throttled(error.retry_after_s)
        file = run.blocks[0].file
        tries = run.tries.after(error)
        blocks = self._hedges.ended(run)
        if isinstance(error, ObjectChanged) and file.changed is None:
            log.warning("%s changed in the store while it was open: %s", file.meta.id.key, error)
            self._mark_changed(file, error)
        if not blocks:
            return
        if self._worth_retrying(error, tries, blocks):
            self._retry_later(blocks, tries, error)
            return
        if any(block.waiters for block in blocks):
            log.warning("fetching %s failed: %s", file.meta.id.key, error)
        self._give_up(blocks, error)

    def condemn(self, file: File, error: FusefsError) -> None:
        """Bytes of this version are wrong: give out no more of them, until it is opened anew."""
        log.warning("%s", error)
        self._mark_changed(file, error)

    def _mark_changed(self, file: File, error: FusefsError) -> None:
        file.changed = error
        self._on_changed(file)

    def _worth_retrying(self, error: FusefsError, tries: Tries, blocks: list[Block]) -> bool:
        if isinstance(error, CorruptData):
            return tries.corrupt < CORRUPT_ATTEMPTS_MAX
        if not isinstance(error, StoreUnavailable):
            return False
        return not tries.are_spent(blocks)

    def _retry_later(self, blocks: list[Block], tries: Tries, error: FusefsError) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, StoreThrottled) else None
        chance = random.random()  # noqa: S311 - jitter, no secret
        pause = backoff_s(tries.failed, chance, retry_after_s)
        due = trio.current_time() + pause
        self._counters.retries += 1
        log.info("fetching %s again in %.1f s: %s", blocks[0].file.meta.id.key, pause, error)
        for block in blocks:
            block.state = State.QUEUED
        heapq.heappush(self._retries, (due, next(self._serial), blocks, tries))

    def _requeue_due(self) -> None:
        """Blocks whose pause is over: waited for, to the front of demand; unwanted, dropped."""
        now = trio.current_time()
        if self._joined:
            self._promote()
        while self._retries and self._retries[0][0] <= now:
            _, _, blocks, tries = heapq.heappop(self._retries)
            if tries.are_spent(blocks):
                self._give_up(blocks, StoreUnavailable("given up after repeated failures"))
            elif any(block.waiters for block in blocks):
                self._demand.extendleft((block, tries) for block in reversed(blocks))
            else:
                self._again.append((blocks, tries))

    def _promote(self) -> None:
        """Somebody came for blocks that nobody waited for: their pause is over."""
        joined, self._joined = self._joined, set()
        entries = [*self._retries, *((0.0, next(self._serial), *each) for each in self._again)]
        self._retries = [
            (due if joined.isdisjoint(blocks) else 0.0, serial, blocks, tries)
            for due, serial, blocks, tries in entries
        ]
        self._again.clear()
        heapq.heapify(self._retries)

    def _give_up(self, blocks: list[Block], error: FusefsError | None) -> None:
        """Forget blocks; their plan comes back to them, after a pause if nothing else arrives."""
        file = blocks[0].file
        for block in blocks:
            self._slots.forget(block, error)
        if file.changed is not None:
            return
        file.plan.want_again(blocks[0].index, blocks[-1].index + 1 - blocks[0].index)
        if not self._pace.is_set_back:
            file.setback.gave_up(trio.current_time())
        self._pace.gave_up()
        heapq.heappush(self._resume_s, file.setback.until_s)
