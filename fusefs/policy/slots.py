"""Which arena slots to reuse next: a ring with a hand, that grows only when it must.

The hand walks the slots in order, so that a run of blocks gets neighbouring slots (one range
request fills them with one write, and a READ across two blocks needs no copy) and the oldest slots
come first. Memory that was used before is taken before memory that never was: first-touch page
faults cost more than the copy, and a mount that streams needs only what is in flight and not yet
read. What may be evicted, and at what cost, the caller says by rank.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class Rank(IntEnum):
    """What it costs to take a slot, cheapest first."""

    FREE = 0
    """Never used, or its bytes have been read to the end."""
    IDLE = 1
    """Partly read or never read, and nobody has come for a while."""
    UNREAD = 2
    """Prefetched and still expected to be read."""
    ACTIVE = 3
    """Being read piece by piece right now."""
    PINNED = 4
    """In flight, or somebody waits for it: never taken."""


LOOKAHEAD_RUNS = 32
"""How many runs ahead of the hand are looked at before the ring grows: in a stream the oldest
slots, right ahead of the hand, are free."""


class SlotRing:
    """Chooses runs of neighbouring slots.

    The mutable state of SlotRing is the hand and the span: slots from `span` on were never used.
    INVARIANT: 0 <= hand <= span <= slots.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.span = 0
        self._hand = 0

    def take(
        self, count: int, rank: Callable[[int], Rank], highest: Rank
    ) -> tuple[int, int] | None:
        """Find up to `count` neighbouring slots: (first slot, how many), or None.

        None of them has a rank above `highest`.
        A full run of free slots near the hand, else slots never used, else the cheapest ranks first
        and within a rank the first run of full length from the hand on, or the longest one.
        """
        found = self._free_run_ahead(count, rank)
        if found is None and self.span < self.slots:
            found = self.span, min(count, self.slots - self.span)
            self.span += found[1]
            return found
        for level in range(Rank.FREE, min(highest, Rank.ACTIVE) + 1):
            if found is None:
                found = self._longest_run(count, rank, level)
        if found is not None:
            self._hand = (found[0] + found[1]) % self.slots
        return found

    def _free_run_ahead(self, count: int, rank: Callable[[int], Rank]) -> tuple[int, int] | None:
        length = 0
        slot = self._hand if self._hand < self.span else 0
        for _ in range(min(self.span, LOOKAHEAD_RUNS * count)):
            length = length + 1 if rank(slot) is Rank.FREE else 0
            if length == count:
                return slot - count + 1, count
            slot += 1
            if slot >= self.span:
                slot = length = 0
        self._hand = slot  # slots that are not free stay behind: their turn comes in the next round
        return None

    def _longest_run(
        self, count: int, rank: Callable[[int], Rank], level: int
    ) -> tuple[int, int] | None:
        best_first, best_length = 0, 0
        for begin, end in ((self._hand, self.span), (0, self._hand)):
            length = 0
            for slot in range(begin, end):
                if rank(slot) <= level:
                    length += 1
                    if length > best_length:
                        best_first, best_length = slot - length + 1, length
                        if length == count:
                            return best_first, best_length
                else:
                    length = 0
        return (best_first, best_length) if best_length else None
