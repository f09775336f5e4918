"""Who lies in which slot, what may be evicted, and how far prefetch may lead the reader.

Pure bookkeeping on the trio thread. Its one idea is the lead: blocks in flight or unread are
bounded by a number that starts at what keeps every connection busy and doubles when a reader ran
through it, so that a mount touches no more memory than its readers' bursts need.
"""

from __future__ import annotations

import trio

from fusefs.engine.blocks import Block, FileTable, State
from fusefs.errors import FusefsError
from fusefs.policy.budget import ArenaBudget
from fusefs.policy.slots import Rank, SlotRing
from fusefs.telemetry.counters import Counters

UNREAD_EXPIRES_S = 30.0
"""A prefetched block that nobody came for in this time makes room for other prefetch: its loader
ended, or reads in another order. Evicting it only costs fetching it again."""


PAUSE_S = 0.5
"""A reader that let prefetch stand still for so long comes in bursts (a loader between shards, a
copy to the GPU): a larger lead would have used that time. Shorter waits are any load's noise."""

EXPIRY_SCAN_S = 1.0
"""Looking through all slots for blocks that expired: not more often than this."""


class Slots:
    """The arena's tenants.

    The mutable state of Slots is the owners, the count of unread blocks, the lead, how long
    prefetch was held back by it, and whether loaders said what they will read (`hinted`): then
    there is nothing to learn from bursts, and the lead is as long as it may become. INVARIANT:
    `_owners[slot]` is the block whose `slot` it is; `_unread` counts blocks that are marked unread,
    in flight or ready; `_lead` <= the budget's `unread_max`.
    """

    def __init__(self, budget: ArenaBudget, files: FileTable, counters: Counters) -> None:
        self._budget = budget
        self._files = files
        self._counters = counters
        self._ring = SlotRing(budget.slots)
        self._owners: list[Block | None] = [None] * budget.slots
        self._unread = 0
        self._lead = budget.lead_first
        self._held_since_s: float | None = None
        self._pause_s = 0.0
        self._scanned_s = 0.0
        self.hinted = False

    def settle_in(self, blocks: list[Block], highest: Rank) -> int:
        """Give `blocks` slots next to each other, as many as fit; how many that were.

        0 means that there is no room at all. What lay there is evicted. The blocks are FETCHING
        from now on.
        """
        count = self._take(blocks, highest)
        for block in blocks[:count]:
            if not block.waiters and not block.unread:
                block.unread = True
                self._unread += 1
            block.file.blocks[block.index] = block
        return count

    def settle_spares(self, spares: list[Block]) -> int:
        """Give spares slots next to each other, as many as fit; how many that were."""
        return self._take(spares, Rank.IDLE)

    def exchange(self, one: Block, other: Block) -> None:
        """Let two blocks change places; one of them may have none."""
        one.slot, other.slot = other.slot, one.slot
        for block in (one, other):
            if block.slot >= 0:
                self._owners[block.slot] = block

    def _take(self, blocks: list[Block], highest: Rank) -> int:
        now = trio.current_time()
        owners = self._owners

        def rank(slot: int) -> Rank:
            owner = owners[slot]
            return Rank.FREE if owner is None else owner.rank(now)

        found = self._ring.take(len(blocks), rank, highest)
        if found is None:
            return 0
        first, count = found
        for slot, block in enumerate(blocks[:count], first):
            before = owners[slot]
            if before is not None:
                self._evict(before)
            block.slot = slot
            block.state = State.FETCHING
            owners[slot] = block
        return count

    def vacate(self, block: Block) -> None:
        """The block's fetch failed and its writer has stopped: the slot is free, if it has one."""
        if block.slot >= 0:
            self._owners[block.slot] = None
            block.slot = -1

    def forget(self, block: Block, error: FusefsError | None = None) -> None:
        """Take the block out of its slot, if it has one, and out of its file; wake who waits."""
        self.vacate(block)
        if block.unread:
            block.unread = False
            self._unread -= 1
        del block.file.blocks[block.index]
        block.settle(State.GONE, error)
        self._files.drop_if_unused(block.file)

    def touched(self, block: Block, served: int) -> None:
        """`served` bytes of a READY block go to a reader."""
        if block.unread:
            block.unread = False
            self._unread -= 1
        block.touched_s = trio.current_time()
        block.served += served
        if block.served >= block.extent.size:
            block.file.plan.mark_consumed(block.index)

    def handed_on(self, block: Block) -> None:
        """A READY block was copied by all loaders that took it out of the arena."""
        if block.unread:
            block.unread = False
            self._unread -= 1
        block.touched_s = trio.current_time()
        block.served = block.extent.size

    def pushed(self, block: Block) -> None:
        """A READY block lies in the kernel's page cache: like one that was read to its end."""
        if block.unread:
            block.unread = False
            self._unread -= 1
        block.served = block.extent.size
        block.file.plan.mark_pushed(block.index)

    def may_prefetch(self, range_blocks: int, in_flight_max: int) -> bool:
        """Whether a full range fits the lead: topping it up block by block costs requests.

        The lead is at least `in_flight_max`, the blocks of all requests that may be in flight.
        """
        lead = max(self._lead, min(in_flight_max, self._budget.unread_max))
        if self.hinted:
            lead = self._budget.unread_max
        room = lead - range_blocks
        now = trio.current_time()
        if self._unread <= room:
            if self._held_since_s is not None:
                self._pause_s = max(self._pause_s, now - self._held_since_s)
                self._held_since_s = None
            return True
        if self._held_since_s is None:
            self._held_since_s = now
        if now - self._scanned_s > EXPIRY_SCAN_S:
            self._scanned_s = now
            self._expire_unread(now)
        return self._unread <= room

    def reader_waits(self) -> None:
        """A reader found a block missing or in flight.

        If it had paused before, with prefetch held back, then it ran through its lead in a burst:
        from now on it may have more.
        """
        if self._pause_s >= PAUSE_S:
            self._pause_s = 0.0
            self._lead = min(2 * self._lead, self._budget.unread_max)

    def statistics(self) -> dict[str, int]:
        """Slots by state."""
        states = [block.state for block in self._owners if block is not None]
        return {
            "slots": self._budget.slots,
            "free": self._budget.slots - len(states),
            "fetching": states.count(State.FETCHING),
            "ready": states.count(State.READY),
            "unread": self._unread,
            "pinned": sum(block is not None and block.waiters > 0 for block in self._owners),
            "touched": self._ring.span,
            "lead": self._lead,
        }

    def _evict(self, block: Block) -> None:
        if block.unread:
            self._waste(block)
        self.forget(block)

    def _expire_unread(self, now: float) -> None:
        for block in self._owners:
            if block is None or not block.unread or block.waiters:
                continue
            if block.state is not State.READY:
                continue
            if now - block.touched_s > UNREAD_EXPIRES_S:
                self._waste(block)
                if block.file.watcher is not None:
                    block.file.watcher.expired(block)

    def _waste(self, block: Block) -> None:
        """The block was prefetched, and nobody came for it."""
        block.unread = False
        self._unread -= 1
        self._counters.prefetch_wasted_bytes += block.extent.size
