"""What was waited for in vain a moment ago, so that nobody waits for it twice.

Pure: times are arguments. The one idea: who asks again at once for what has just reached its
deadline is the kernel, on behalf of somebody who has waited already. A page fault asks three times
before it becomes a SIGBUS (readahead, and the page twice: mm/filemap.c, filemap_fault); processes
that look up one name, or fault on one page, wait for each other and then ask one after the other.
Each of these questions would wait for the whole deadline.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

AGAIN_S = 1.0
"""What was missed less than this ago is asked for again by the kernel, not by a reader."""

AGAIN_WAIT_S = 0.2
"""So long it is waited for then: a few round trips, if the store has just come back."""

MISSED_MAX = 10_000
"""More than there are questions at once."""


class Missed:
    """Things that reached a deadline.

    The mutable state of Missed is when each was missed last, the latest at the end.
    """

    def __init__(self) -> None:
        self._at: OrderedDict[Hashable, float] = OrderedDict()

    def wait_s(self, things: list[Hashable], deadline_s: float, now: float) -> float:
        """How long to wait for these things together."""
        while self._at:
            oldest = next(iter(self._at))
            if now - self._at[oldest] < AGAIN_S and len(self._at) <= MISSED_MAX:
                break
            del self._at[oldest]
        if any(thing in self._at for thing in things):
            return min(AGAIN_WAIT_S, deadline_s)
        return deadline_s

    def missed(self, things: list[Hashable], now: float) -> None:
        """They did not come in time."""
        for thing in things:
            self._at[thing] = now
            self._at.move_to_end(thing)
