"""When a daemon that ended is started again, and when that is given up.

The one idea: what counts is whether daemons serve at all. One that served for a while is replaced
at once; one that ends as soon as it serves will do so again (a request it dies of is sent again to
the next), so the pauses grow; and when none served for long, waiting readers deserve an error.
"""

from __future__ import annotations

STEADY_S = 1.0
"""A daemon that lived so long did serve: a request that kills it is among the first it is sent."""

LONG_S = 60.0
"""A daemon that lived so long owes nothing to the crashes before it."""

PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 5.0
"""As `policy.backoff` has it for stores: a start costs half a second of a core, so one in five
seconds costs a tenth of it."""

GIVE_UP_S = 120.0
"""As long as a read waits for a store (`engine.read_deadline_s`): by then it would have failed
with a daemon as well. After that, readers get an error instead of hanging for ever."""


class Restarts:
    """The history of one mount's daemons, in so far as it decides about the next.

    The mutable state of Restarts is how many ended early (`_early`, less one for each that did
    not), since when one serves, and when one was last known to serve.
    """

    def __init__(self, now_s: float) -> None:
        self._early = 0
        self._serving_since_s: float | None = None
        self._well_s = now_s

    def serves(self, now_s: float) -> None:
        """A daemon has taken the mount over."""
        self._serving_since_s = now_s

    def ended(self, now_s: float) -> None:
        """It ended; or, if none served, one that was started never came to it."""
        since_s, self._serving_since_s = self._serving_since_s, None
        lived_s = 0.0 if since_s is None else now_s - since_s
        if lived_s < STEADY_S:
            self._early += 1
            return
        self._well_s = now_s
        self._early = 0 if lived_s >= LONG_S else max(0, self._early - 1)

    def pause_s(self) -> float:
        """Seconds to wait before the next is started: 0 but after two that ended early."""
        if self._early < 2:
            return 0.0
        return min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(self._early - 2, 16))

    def is_hopeless(self, now_s: float) -> bool:
        """Whether no daemon served for `GIVE_UP_S`."""
        return self._serving_since_s is None and now_s - self._well_s > GIVE_UP_S
