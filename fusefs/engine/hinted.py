"""What loaders said they will read: plans of hints, and which of their blocks to fetch next.

Fetches nothing itself: the prefetcher asks it first, for plans of priority "hinted", and last, for
those of priority "warm". The one idea: a plan is told of every block of its files that lands or is
lost, whoever fetched it, so that eight loaders with the same wish cost one download.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from fusefs.engine.blocks import Block, File, FileTable, State
from fusefs.engine.slots import Slots
from fusefs.errors import FusefsError, StoreUnavailable
from fusefs.objects import Extent, ObjectMeta
from fusefs.policy.hinted import Pair, Wanted
from fusefs.policy.plan import Priority

READ_PAST_BYTES = 4 << 20
"""The kernel reads on behind what a loader asked for, at most by `kernel.read_ahead_kb`: 4 MiB."""

RATE_INTERVAL_S = 1.0
"""Over how long, and up to twice as long, bytes per second are measured."""

LOOK_EVERY_S = 1.0
"""How often blocks that are kept for others are looked at; they are never more than the slots."""

FileRun = tuple[File, int, int]
"""(file, first block, count)."""


class Listener(Protocol):
    """Who asked for a plan. Is told within the engine's own steps: takes note, and no time."""

    def ready(self, inode: int, extents: list[Pair]) -> None:
        """These bytes are there: a read of them does not wait for the store."""

    def failed(self, inode: int, error: FusefsError) -> None:
        """Nothing more of this file is fetched for the plan."""


class Part:
    """One file of one plan."""

    __slots__ = ("error", "file", "inode", "queued", "wanted")

    def __init__(self, file: File, inode: int) -> None:
        self.file = file
        self.inode = inode
        self.wanted = Wanted(file.meta.size, file.plan.block_size)
        self.error: FusefsError | None = None
        self.queued = False

    def is_alive(self, failed: Callable[[int, FusefsError], None] | None) -> bool:
        """Whether it makes sense to fetch more of it; that it changed is said once, to `failed`."""
        if self.file.changed is not None:
            self.fail(self.file.changed, failed)
        return self.error is None

    def fail(self, error: FusefsError, failed: Callable[[int, FusefsError], None] | None) -> None:
        """Fetch no more of it. Said once."""
        if self.error is None:
            self.error = error
            if failed is not None:
                failed(self.inode, error)


class Rate:
    """Bytes per second, lately.

    The mutable state of Rate is two marks: the count at the newer one's time and at the older's.
    """

    def __init__(self) -> None:
        self._older = self._newer = (trio.current_time(), 0)

    def measure(self, total: int) -> int:
        """Bytes per second since the older mark, `total` being what there is by now."""
        now = trio.current_time()
        if now - self._newer[0] > RATE_INTERVAL_S:
            self._older, self._newer = self._newer, (now, total)
        since, before = self._older
        return int((total - before) / (now - since)) if now > since else 0


class Plan(Protocol):
    """One plan, of either mode."""

    priority: Priority
    parts: dict[int, Part]

    def next_run(self) -> FileRun | None:
        """What to fetch next."""

    def landed(self, part: Part, block: Block) -> None:
        """A block of a file of the plan has become READY."""

    def lost(self, part: Part, block: Block) -> None:
        """A block is gone without having landed, or was evicted."""

    def accessed(self, part: Part, indices: range) -> None:
        """Somebody reads these blocks."""

    def wasted(self) -> None:
        """Blocks lay there for long, and nobody came for them."""

    def awaits(self, part: Part, block: Block) -> bool:
        """Whether a READY block is of use to the plan yet."""

    def advance(self) -> None:
        """Others let go of blocks: there may be room for the plan's."""

    @property
    def wants_more(self) -> bool:
        """Whether there is something left to fetch for it."""


class WarmPlan:
    """A plan whose bytes are read through the mount.

    The mutable state of WarmPlan is its parts, what is to come first, and whether it stands still:
    if nobody came for what it fetched, fetching more would only push that out again.
    """

    def __init__(self, priority: Priority, in_order: bool, listener: Listener | None) -> None:
        self.priority = priority
        self.in_order = in_order
        self.parts: dict[int, Part] = {}
        self.rate = Rate()
        self._ready_to = None if listener is None else listener.ready
        self._failed_to = None if listener is None else listener.failed
        self._queue: deque[Part] = deque()
        self._first: deque[tuple[Part, int, int]] = deque()
        self._stands_still = False

    @property
    def total_bytes(self) -> int:
        """What was asked for."""
        return sum(part.wanted.total_bytes for part in self.parts.values())

    @property
    def ready_bytes(self) -> int:
        """What of it was there since it was asked for."""
        return sum(part.wanted.ready_bytes for part in self.parts.values())

    @property
    def wants_more(self) -> bool:
        """Whether there is something left to fetch for it."""
        return bool(self._queue or self._first)

    def want(self, part: Part, extents: Iterable[Pair]) -> None:
        """Want these extents, too. Raises ValueError if one ends beyond the file."""
        wanted, file = part.wanted, part.file
        runs = wanted.add(extents, self.in_order)
        self._stands_still = False
        if not part.queued:
            part.queued = True
            self._queue.append(part)
        consumed = file.plan.consumed
        look_at_all = consumed.known()
        for first, stop in runs:
            for index in range(first, stop) if look_at_all else _those_in(file, first, stop):
                block = file.blocks.get(index)
                if index in consumed or (block is not None and block.state is State.READY):
                    self._ready(part, index)

    def want_first(self, part: Part, first: int, stop: int) -> None:
        """Blocks `[first, stop)` are waited for: fetch them before the others."""
        self._stands_still = False
        self._first.append((part, first, stop))

    def next_run(self) -> FileRun | None:
        """What to fetch next."""
        if self._stands_still:
            return None
        while self._first:
            part, first, stop = self._first[0]
            run = part.wanted.run_in(first, stop, part.file.plan.range_blocks, part.file.has)
            if run is not None and part.is_alive(self._failed_to):
                return part.file, *run
            self._first.popleft()
        resting = 0
        while resting < len(self._queue):
            part = self._queue[0]
            if not part.file.setback.may_try(trio.current_time()):
                self._queue.rotate(-1)
                resting += 1
                continue
            run = part.wanted.next_run(part.file.plan.range_blocks, part.file.has)
            if run is not None and part.is_alive(self._failed_to):
                part.file.setback.tried(trio.current_time())
                return part.file, *run
            self._queue.popleft().queued = False
        return None

    def landed(self, part: Part, block: Block) -> None:
        """A block of a file of the plan has become READY."""
        self._ready(part, block.index)

    def lost(self, part: Part, block: Block) -> None:
        """A block is gone: failed for good, or to be fetched again if it had not landed."""
        # Who listens is told, and reads by himself; else nobody comes back to what was given up.
        retried = self._failed_to is None and isinstance(block.error, StoreUnavailable)
        if block.error is not None and not retried:
            if part.wanted.parts(block.index):
                part.fail(block.error, self._failed_to)
        elif part.wanted.run_in(block.index, block.index + 1, 1, part.file.has):
            self._requeue(part)

    def accessed(self, part: Part, indices: range) -> None:
        """Somebody reads these blocks; what follows them and is not there any more comes again."""
        self._stands_still = False
        blocks, consumed = part.file.blocks, part.file.plan.consumed
        marks = part.wanted.marks
        for index in indices:
            if marks[index] and index not in blocks and index not in consumed:
                part.wanted.want_again(index, lambda i: i not in blocks and i not in consumed)
                self._requeue(part)
                return

    def wasted(self) -> None:
        """Blocks lay there for long, and nobody came for them."""
        self._stands_still = True

    def awaits(self, part: Part, block: Block) -> bool:
        """Whether its peer was told that the block is there, and has not read it yet."""
        return bool(part.wanted.marks[block.index]) and block.index not in part.file.plan.consumed

    def advance(self) -> None:
        """Nothing waits for others' blocks."""

    def _requeue(self, part: Part) -> None:
        part.wanted.rewind()
        if not part.queued:
            part.queued = True
            self._queue.appendleft(part)

    def _ready(self, part: Part, index: int) -> None:
        extents = part.wanted.mark_ready(index)
        if extents and self._ready_to is not None:
            self._ready_to(part.inode, extents)


def _those_in(file: File, first: int, stop: int) -> list[int]:
    """The blocks of a file that are in `[first, stop)`, by the shorter way."""
    if stop - first < len(file.blocks):
        return [index for index in range(first, stop) if index in file.blocks]
    return sorted(index for index in file.blocks if first <= index < stop)


class HintedPlans:
    """All plans of one mount. Is the watcher of their files' blocks.

    The mutable state of HintedPlans is the plans, the parts of each file, and the blocks that one
    plan is done with and others are not.
    INVARIANT: every part of a plan in `_plans` is in `_by_file`, and is one open of its file; the
    slots' `hinted` says at least whenever a plan wants more.
    """

    def __init__(
        self,
        files: FileTable,
        slots: Slots,
        closed: Callable[[File], None],
        wake: Callable[[], None],
    ) -> None:
        self.block_size = files.block_size
        self._files = files
        self._slots = slots
        self._closed = closed
        self._wake = wake
        self._plans: deque[Plan] = deque()
        self._by_file: dict[int, list[tuple[Plan, Part]]] = {}
        self._kept: dict[Block, None] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def add(self, plan: Plan) -> None:
        """Ask this plan from now on, until `remove`."""
        self._plans.append(plan)
        self.look_again()

    def part(self, plan: Plan, meta: ObjectMeta, inode: int) -> Part:
        """The plan's part for this file, made on first use."""
        part = plan.parts.get(inode)
        if part is None:
            file = self._files.opened(meta)
            file.hinted += 1
            file.inode = inode
            file.watcher = self
            part = plan.parts[inode] = Part(file, inode)
            self._by_file.setdefault(id(file), []).append((plan, part))
        return part

    def remove(self, plan: Plan) -> None:
        """Fetch nothing more for the plan; what is on its way still lands."""
        self._plans.remove(plan)
        for part in plan.parts.values():
            file = part.file
            those = self._by_file[id(file)]
            those.remove((plan, part))
            if not those:
                del self._by_file[id(file)]
                file.watcher = None
            file.hinted -= 1
            self._files.closed(file)
            self._closed(file)
        self.look_again()

    def look_again(self) -> None:
        """A plan wants more than before, or less."""
        self._slots.hinted = any(plan.wants_more for plan in self._plans)
        self._wake()

    def next_run(self, priority: Priority) -> FileRun | None:
        """What to fetch next at `priority` (HINTED or WARM), for each plan in turn."""
        if not self._slots.hinted:
            return None
        for _ in range(len(self._plans)):
            self._plans.rotate(-1)
            plan = self._plans[-1]
            if plan.priority is priority:
                run = plan.next_run()
                if run is not None:
                    return run
        self._slots.hinted = any(plan.wants_more for plan in self._plans)
        return None

    def accessed(self, file: File, extent: Extent, indices: range) -> bool:
        """A READ came; whether plans say all there is to say about what to fetch around it.

        They do for a selective plan's own bytes: to fetch the whole file then is what it must not
        lead to. Other bytes of the file are read like any other's, and so is a file once started.
        """
        those = self._by_file.get(id(file))
        if those is None:
            return False
        is_said = False
        for plan, part in those:
            if part.error is not None:
                continue  # nothing is fetched for it any more: it is read like any other file
            plan.accessed(part, indices)
            wanted = part.wanted
            if not wanted.is_whole and wanted.near(extent.start, extent.stop, READ_PAST_BYTES):
                is_said = True
            self._slots.hinted |= plan.wants_more
        self._wake()
        return is_said and not file.started

    async def run(self) -> None:
        """Look every second whether blocks were kept in vain, for ever: ranks die, or never come.

        While plans want more the pump is woken, too: it is what notices that blocks expired.
        """
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self._free(tuple(self._kept))
            if self._slots.hinted:
                self._wake()

    def handed_on(self, blocks: list[Block]) -> None:
        """A plan let go of these blocks: those that no other plan awaits are free to go."""
        self._kept.update(dict.fromkeys(blocks))
        self._free(blocks)
        for plan in tuple(self._plans):
            plan.advance()
        self.look_again()

    def _free(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            those = self._by_file.get(id(block.file), ())
            if block.state is not State.READY or block.waiters:
                self._kept.pop(block, None)  # gone, or handed out again: that one lets go of it
            elif not any(plan.awaits(part, block) for plan, part in those):
                self._kept.pop(block, None)
                self._slots.handed_on(block)

    # -- what happens to blocks -------------------------------------------------------------------

    def settled(self, block: Block) -> None:
        """A block of a watched file has become READY, or is GONE."""
        for plan, part in tuple(self._by_file.get(id(block.file), ())):
            if block.state is State.READY:
                plan.landed(part, block)
            else:
                plan.lost(part, block)
                self._slots.hinted |= plan.wants_more

    def expired(self, block: Block) -> None:
        """A block of a watched file was not read in time."""
        for plan, part in self._by_file.get(id(block.file), ()):
            if part.wanted.parts(block.index):
                plan.wasted()
