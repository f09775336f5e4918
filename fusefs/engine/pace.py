"""The fetcher's side of `policy.concurrency`: tells it what happens and when, asks what may start.

Holds the clock and the look at the cores that the policy has no business with. One `Pace` serves
the whole mount, so that all files and shards share one limit.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from fusefs.policy.budget import ArenaBudget
from fusefs.policy.concurrency import Concurrency
from fusefs.policy.setback import Setback
from fusefs.telemetry.counters import Counters


class Pace:
    """How many requests may be in flight now, and how large.

    The mutable state of Pace is its controller, the number of requests in flight, and whether
    nothing arrives at all (`_setback`).
    """

    def __init__(
        self, budget: ArenaBudget, counters: Counters, are_cores_full: Callable[[], bool]
    ) -> None:
        self._budget = budget
        self._counters = counters
        self._are_cores_full = are_cores_full
        self._control = Concurrency(budget)
        self._setback = Setback()
        self._in_flight = 0

    @property
    def range_blocks(self) -> int:
        """Blocks of a full range."""
        return self._control.range_blocks

    @property
    def in_flight_max(self) -> int:
        """Blocks in flight if every connection fetches a full range."""
        return self._control.limit * self._control.range_blocks

    @property
    def alarm_s(self) -> float:
        """When prefetch may go on that was stopped; past if it was not."""
        return max(self._control.prefetch_after_s, self._setback.until_s)

    @property
    def is_set_back(self) -> bool:
        """Whether prefetch was given up and nothing has arrived since."""
        return self._setback.lasts

    def may_demand(self) -> bool:
        """Whether a request that somebody waits for may start."""
        return self._in_flight < self._control.limit

    def may_prefetch(self) -> bool:
        """Whether a request that nobody waits for may start."""
        if trio.current_time() < self.alarm_s:
            return False
        return self._in_flight < self._control.prefetch_limit

    def started(self, size: int) -> None:
        """A request for `size` bytes was sent."""
        self._in_flight += 1
        self._control.started(size, self._in_flight, trio.current_time())

    def prefetched(self) -> None:
        """The request sent last is one that nobody waits for."""
        self._setback.tried(trio.current_time())

    def gave_up(self) -> None:
        """Blocks were given up: while nothing arrives, prefetch is a probe now and then."""
        self._setback.gave_up(trio.current_time())

    def landed(self, size: int, since_s: float, is_first: bool) -> None:
        """A request's next bytes are here; the ones before came, or it was sent, at `since_s`."""
        now = trio.current_time()
        self._setback.landed()
        self._control.landed(size, now - since_s, is_first, now)
        if self._control.is_due(now):
            self._control.review(now, self._are_cores_full())

    def ended(self) -> None:
        """A request ended, well or not."""
        self._in_flight -= 1
        self._control.ended(self._in_flight, trio.current_time())

    def throttled(self, retry_after_s: float | None) -> None:
        """The store asked to slow down."""
        self._counters.throttled += 1
        self._control.throttled(trio.current_time(), retry_after_s)

    def statistics(self) -> dict[str, int]:
        """The present limits."""
        return {
            "limit": self._control.limit,
            "limit_max": self._budget.connections_max,
            "in_flight": self._in_flight,
            "range_bytes": self.range_blocks * self._budget.block_size,
            "throttled": int(self._control.is_throttled),
        }
