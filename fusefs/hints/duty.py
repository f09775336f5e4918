"""How much of the daemon's one thread a peer may have.

READs are answered on the same thread, so a peer that floods it must wait in between. The one idea:
a peer pays for the time its own requests took, and not for their number or length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.2
"""Of the thread, for as long as a peer likes: a READ of 1 MiB takes 0.1 ms, and a flood of
requests then costs readers a fifth."""

BURST_S = 0.1
"""At once: the plan of a large model (100,000 extents) takes as long."""


class Duty:
    """One peer's account.

    The mutable state of Duty is the seconds worked and not yet paid off, and as of when.
    """

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._at_s = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Account for the time inside, in which nothing may be awaited."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._pay(began)
            self._at_s = time.monotonic()
            self._owed_s += self._at_s - began

    def pause_s(self) -> float:
        """How long the peer must wait before its next request is looked at."""
        self._pay(time.monotonic())
        return max(0.0, self._owed_s - BURST_S) / SHARE

    def _pay(self, now: float) -> None:
        self._owed_s = max(0.0, self._owed_s - (now - self._at_s) * SHARE)
        self._at_s = now
