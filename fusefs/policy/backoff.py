"""How long to wait before trying again: exponential with full jitter.

Full jitter spreads the clients of a store that just recovered
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from __future__ import annotations

BACKOFF_FIRST_S = 0.1
"""About two round trips to a regional store: a lost connection is tried again almost at once."""

BACKOFF_MAX_S = 5.0
"""A store that comes back is noticed within this time, well inside a read's deadline."""


def backoff_s(attempt: int, chance: float, retry_after_s: float | None = None) -> float:
    """Seconds to wait after failure number `attempt` (from 1), given `chance` in [0, 1).

    What the store asked for (`Retry-After`) is a floor, but never more than four times our own
    limit: a hostile header cannot park a read for hours.
    """
    ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 16))
    floor = min(retry_after_s or 0.0, 4 * BACKOFF_MAX_S)
    return max(ceiling * chance, floor)
