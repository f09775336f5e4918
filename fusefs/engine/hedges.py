"""Runs in flight, and second runs for those that are late.

A hedge fetches the missing blocks of a late run once more, into slots of its own. Its one idea: its
blocks are *spares*, which belong to no file; when a spare's bytes are there before those of the
real block, the two exchange their slots. So a block is always where its first complete bytes are,
and whatever is still being written, by whichever run, is a spare's slot, which nobody else gets
until that run has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fusefs.engine.blocks import Block, State
from fusefs.engine.slots import Slots
from fusefs.errors import CorruptData, FusefsError, StoreThrottled
from fusefs.policy.hedging import Tail, may_hedge
from fusefs.telemetry.counters import Counters

LOOK_EVERY_S = 0.1
"""How often runs in flight are looked at: a fifth of what counts as late at least."""

PREFETCH_ATTEMPTS_MAX = 4
"""A prefetch nobody waits for is given up after so many failures: its plan comes back to it."""


@dataclass(frozen=True, slots=True)
class Tries:
    """How often some blocks have failed; of that with wrong bytes, or by order of the store."""

    failed: int = 0
    corrupt: int = 0
    throttled: int = 0

    def after(self, error: FusefsError) -> Tries:
        """One failure more."""
        return Tries(
            self.failed + 1,
            self.corrupt + isinstance(error, CorruptData),
            self.throttled + isinstance(error, StoreThrottled),
        )

    def are_spent(self, blocks: list[Block]) -> bool:
        """Whether to let go of blocks: nobody waits for them, and the answer was not "later"."""
        refused = self.failed if blocks[0].file.opens <= 0 else self.failed - self.throttled
        return refused >= PREFETCH_ATTEMPTS_MAX and not any(block.waiters for block in blocks)


@dataclass(slots=True, eq=False)
class Run:
    """One range request under way: neighbouring blocks, written into neighbouring slots.

    `rival` is the run that fetches some of the same blocks, if there is one. INVARIANT: its writer
    writes to the slot of `blocks[i]`, for each i >= `landed`, until it is done.
    """

    blocks: list[Block]
    tries: Tries
    started_s: float
    told_s: float
    landed: int = 0
    rival: Run | None = None
    is_hedge: bool = False
    had_hedge: bool = False
    has_won: bool = False


class Hedges:
    """The second runs of one fetcher.

    The mutable state of Hedges is what it knows of normal requests, how many hedges are in flight,
    and when it looks again. INVARIANT: a run has one rival at most, and is its rival's.
    """

    def __init__(self, slots: Slots, counters: Counters) -> None:
        self._slots = slots
        self._counters = counters
        self._tail = Tail()
        self._in_flight = 0
        self.look_s = 0.0

    def landed(self, size: int, seconds: float, is_first: bool) -> None:
        """Learn what is normal."""
        self._tail.landed(size, seconds, is_first)

    def is_due(self, now: float) -> bool:
        """Whether to look at the runs; True not more often than every `LOOK_EVERY_S`."""
        if now < self.look_s:
            return False
        self.look_s = now + LOOK_EVERY_S
        return True

    def wanted(self, runs: Iterable[Run], now: float) -> tuple[list[Block], Run] | None:
        """A late run that somebody waits for, and spares with slots for what it misses."""
        counters = self._counters
        if not may_hedge(counters.hedges, counters.requests_read, self._in_flight):
            return None
        for run in runs:
            if run.rival is None and not run.had_hedge and self._is_late(run, now):
                spares = [Block(b.file, b.index, spare=True) for b in run.blocks[run.landed :]]
                count = self._slots.settle_spares(spares)
                return (spares[:count], run) if count else None
        return None

    def started(self, hedge: Run, late: Run) -> None:
        """`hedge` was sent."""
        hedge.is_hedge = late.had_hedge = True
        hedge.rival, late.rival = late, hedge
        self._in_flight += 1
        self._counters.hedges += 1

    def winner(self, run: Run, position: int) -> Block | None:
        """The block of a file that is complete with `run.blocks[position]`; None: it was before."""
        block = run.blocks[position]
        if not block.spare:
            return block
        found = self._counterpart(run, block, spare=False)
        if found is None:
            return None
        place, real = found
        assert run.rival is not None
        self._slots.exchange(block, real)
        run.blocks[position], run.rival.blocks[place] = real, block
        if run.is_hedge and not run.has_won:
            run.has_won = True
            self._counters.hedges_won += 1
        return real

    def ended(self, run: Run) -> list[Block]:
        """The run's writer is done: free its spares, hand on what its rival still fetches.

        Returns the blocks that did not arrive and that nobody fetches now; they have no slots.
        """
        missing = run.blocks[run.landed :]
        orphans = []
        for block in missing:
            if block.spare:
                continue
            self._slots.vacate(block)
            found = self._counterpart(run, block, spare=True)
            if found is None:
                orphans.append(block)
            else:
                assert run.rival is not None
                place, spare = found
                self._slots.exchange(block, spare)
                run.rival.blocks[place] = block
        for block in run.blocks:
            if block.spare:
                self._slots.vacate(block)
        if run.rival is not None:
            run.rival.rival = None
        self._in_flight -= run.is_hedge
        return orphans

    def _counterpart(self, run: Run, block: Block, spare: bool) -> tuple[int, Block] | None:
        """Where the rival still fetches the same block of the file: (position, spare or not)."""
        rival = run.rival
        if rival is None:
            return None
        place = block.index - rival.blocks[0].index
        if not rival.landed <= place < len(rival.blocks):
            return None
        other = rival.blocks[place]
        return (place, other) if other.spare is spare else None

    def _is_late(self, run: Run, now: float) -> bool:
        size = 0
        for position, block in enumerate(run.blocks):
            size += block.extent.size if position else 0
            if position >= run.landed and block.waiters and block.state is State.FETCHING:
                return self._tail.is_late(now - run.started_s, size)
        return False
