"""Which request is late: one that takes several times as long as nearly all of its kind.

Object stores answer most requests in tens of milliseconds and a few in seconds, on any load; a
second request is then faster than waiting (Dean and Barroso, "The Tail at Scale", 2013). Pure:
times are arguments.
"""

from __future__ import annotations

from collections import deque

LATE_MIN_S = 0.5
"""A reader hardly notices less, and a busy machine's scheduler alone can take a part of it."""

LATE_UNKNOWN_S = 2.0
"""What counts as late as long as too few requests have ended to say."""

LATE_FACTOR = 3.0
"""Times what 19 of 20 take."""

SAMPLES_MIN = 16
SAMPLES_MAX = 256
"""Some seconds of a load: what is normal changes with the limit and the hour."""

FREE = 4
PART = 20
"""Hedges are at most these few and one request in twenty: a store that is slow as a whole must not
get twice the load."""

AT_ONCE_MAX = 4
"""A tail is a few requests; where more are late at once, it is the store, or the network."""


class Tail:
    """How long requests take, and which one takes too long.

    The mutable state of Tail is the recent samples and what 19 of 20 of them keep below.
    """

    def __init__(self) -> None:
        self._firsts: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._per_byte: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._known: tuple[float, float] | None = None

    def landed(self, size: int, seconds: float, is_first: bool) -> None:
        """The next `size` bytes of a request took so long, since it was sent or the last ones."""
        if is_first:
            self._firsts.append(seconds)
        else:
            self._per_byte.append(seconds / size)
        self._known = None

    def is_late(self, age_s: float, rest: int) -> bool:
        """Whether a request of this age should have brought its first bytes and `rest` more."""
        if age_s < LATE_MIN_S:
            return False
        if len(self._firsts) < SAMPLES_MIN:
            return age_s > LATE_UNKNOWN_S
        if self._known is None:
            self._known = _most(self._firsts), _most(self._per_byte)
        first_s, per_byte = self._known
        return age_s > LATE_FACTOR * (first_s + rest * per_byte)


def may_hedge(hedges: int, requests: int, at_once: int) -> bool:
    """Whether one more is allowed, after so many hedges and requests, with so many under way."""
    return at_once < AT_ONCE_MAX and hedges < FREE + requests // PART


def _most(samples: deque[float]) -> float:
    ordered = sorted(samples)
    return ordered[len(ordered) * 19 // 20] if ordered else 0.0
