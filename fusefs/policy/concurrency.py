"""How many range requests may be in flight, and how large they are: both follow what is measured.

Times are arguments; what a controller learns are facts of single requests. Its one idea: what a
connection gives (time to the first bytes, seconds per byte after them), times the connections in
flight, is the throughput, known after a fraction of the time that counting bytes over a window
would take. So the limit doubles every few round trips while that product still rises, and goes back
to the smaller one where it does not. A store that says "slow down" (503, 429) is given fewer and
larger requests at once, and gets more of them slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusefs.policy.budget import ArenaBudget

RESERVED_FRACTION = 8
"""One request in eight is kept for demand: a page fault finds a connection at once."""

SAMPLES_MIN = 8
"""An epoch has at least as many requests, or a third as many as there are connections: fewer tell
more of single connections than of their number, and more would wait for the next wave."""

EPOCH_MIN_S = 0.1
"""Shorter epochs would see the pauses of a busy machine's scheduler."""

RAMP_MAX_S = 0.25
"""Requests sent within this time before the limit was reached are samples of it: otherwise slow
connections (a second for each request) would be judged a whole request later."""

BOUND_FRACTION = 0.75
"""An epoch counts if on average as much of the limit was in use. With less, the limit is not what
bounds the throughput (the reader is, or memory), and nothing can be learnt about it."""

WORTH = 1.05
"""More connections have to give a twentieth more: so where the climb stops, at least 0.95 of what
the next step could give is there, and it stops at the smallest limit of which this is true."""

NEARLY_ALL = 0.8
"""Where twice the connections gave this part of twice as much, the link is far from full, and the
next step is a factor of four: slow connections are many soon."""

HOLD_FIRST_S = 15.0
HOLD_MAX_S = 300.0
"""How long a limit is kept that more connections did not improve, before they are tried again; it
doubles each time. A try costs a few round trips and some memory."""

THROTTLED_FACTOR = 0.7
"""What is left of the limit after a throttled answer. As in CUBIC (RFC 9438, 4.6): halving it loses
more than it needs to, since an answer is throttled as soon as the limit is slightly too high."""

CALM_S = 1.0
"""Throttled answers within this time belong to the same wave: all requests of one moment are told
the same, and one step back answers them."""

KNEE = 0.85
"""How near the limit comes, without a pause, to where it was when the store throttled."""

STEPS = 8
"""It doubles up to half of where it was, then comes nearer in eighths: a store that has just
throttled is not hit with all of it at once."""

LIMIT_MIN = 4
"""A store in trouble is still asked by so many requests at once. With fewer, a reader waits for
each block, and the small ranges near it make more requests (simulated: 30 requests/s)."""

RETRY_AFTER_MAX_S = 20.0
"""A hostile `Retry-After` cannot stop prefetch for hours (see `policy.backoff`)."""


@dataclass(frozen=True, slots=True)
class Level:
    """What a limit gave: bytes per second."""

    limit: int
    rate: float


class Epoch:
    """The requests of one stretch of time with one limit.

    The mutable state of Epoch is sums. `firsts` are first messages of requests (sent → first bytes
    landed), `rests` the later ones; `area` is connections in flight x seconds.
    INVARIANT: every sample's time lies wholly inside the epoch or the ramp before it: the moment,
    since `ramp_s`, in which the requests were sent that fill the limit.
    """

    __slots__ = (
        "area", "began_s", "firsts", "firsts_bytes", "firsts_s", "in_flight", "ramp_s", "rests",
        "rests_bytes", "rests_s", "seen_s", "started", "started_bytes",
    )  # fmt: skip

    def __init__(self, now: float, in_flight: int, ramp_s: float | None = None) -> None:
        self.began_s = self.seen_s = now
        self.ramp_s = now if ramp_s is None else ramp_s
        self.in_flight = in_flight
        self.area = 0.0
        self.firsts = self.rests = self.started = 0
        self.firsts_bytes = self.rests_bytes = self.started_bytes = 0
        self.firsts_s = self.rests_s = 0.0

    def moved(self, in_flight: int, now: float) -> None:
        """So many requests are in flight from now on."""
        self.area += self.in_flight * (now - self.seen_s)
        self.seen_s = now
        self.in_flight = in_flight

    def landed(self, size: int, seconds: float, is_first: bool, now: float) -> None:
        """A request's next `size` bytes took so long, since it was sent or since the last ones."""
        if now - seconds < self.ramp_s:
            return
        if is_first:
            self.firsts += 1
            self.firsts_bytes += size
            self.firsts_s += seconds
        else:
            self.rests += 1
            self.rests_bytes += size
            self.rests_s += seconds

    @property
    def mean_in_flight(self) -> float:
        """Connections in use, on average."""
        elapsed = self.seen_s - self.began_s
        return self.area / elapsed if elapsed > 0 else float(self.in_flight)

    def is_complete(self, limit: int, now: float) -> bool:
        """Whether there are samples enough to tell the throughput."""
        wanted = max(SAMPLES_MIN, limit // 3)
        if self.firsts < wanted or not self.started or now - self.began_s < EPOCH_MIN_S:
            return False
        has_rest = self.started_bytes * self.firsts > 1.5 * self.firsts_bytes * self.started
        return not has_rest or self.rests >= wanted

    def rate(self, range_bytes: int) -> float:
        """Bytes per second that full ranges bring, if it goes on like this.

        Full ones, so that epochs compare that saw more or fewer of the small ones near a reader. If
        there were small ones only, then these.
        """
        size = range_bytes if self.rests else self.started_bytes / self.started
        first_bytes, first_s = self.firsts_bytes / self.firsts, self.firsts_s / self.firsts
        rest = max(0.0, size - first_bytes)
        per_byte = self.rests_s / self.rests_bytes if self.rests_bytes else first_s / first_bytes
        return self.mean_in_flight * size / max(first_s + rest * per_byte, 1e-9)


class Concurrency:
    """The controller of one mount: one limit for all its files and shards.

    The mutable state of Concurrency is the limit, the range, the epoch, what the climb knows
    (`_base`: the best level so far; `_doubted`: the higher limit has failed once), until when it
    rests, where the store throttled (`_ceiling`; `_useful`: the limit before that), whether
    that was `_raised` since, and whether requests sent since the last step back (`_stepped_s`) were
    `_served`.
    INVARIANT: 1 <= limit <= connections_max; limit * range_blocks fits what prefetch may hold, or
    range_blocks is 1.
    """

    def __init__(self, budget: ArenaBudget) -> None:
        self._budget = budget
        self.limit = budget.connections_first
        self.prefetch_after_s = 0.0
        self._range_wanted = budget.range_blocks
        self._epoch = Epoch(0.0, 0)
        self._ramp_s = 0.0
        self._base: Level | None = None
        self._doubted = False
        self._ceiling: float | None = None
        self._useful = self.limit
        self._hold_s = HOLD_FIRST_S
        self._hold_until_s = 0.0
        self._calm_after_s = 0.0
        self._raised = False
        self._served = False
        self._stepped_s = 0.0

    @property
    def range_blocks(self) -> int:
        """Blocks of a full range. Where memory is short, more connections make smaller ranges."""
        return max(1, min(self._range_wanted, self._budget.unread_max // self.limit))

    @property
    def prefetch_limit(self) -> int:
        """Requests in flight up to which prefetch may start another."""
        return self.limit - max(int(self.limit > 1), self.limit // RESERVED_FRACTION)

    @property
    def is_throttled(self) -> bool:
        """Whether the store asked us to slow down, and the limit has not recovered since."""
        return self._ceiling is not None

    def started(self, size: int, in_flight: int, now: float) -> None:
        """A request for `size` bytes was sent; with it so many are in flight."""
        epoch = self._epoch
        epoch.moved(in_flight, now)
        idle_before = epoch.mean_in_flight < BOUND_FRACTION * self.prefetch_limit
        if in_flight == self.prefetch_limit and idle_before:
            # Only now the limit begins to matter; but those who fill it were sent a moment ago.
            self._epoch = epoch = Epoch(now, in_flight, max(self._ramp_s, now - RAMP_MAX_S))
        elif in_flight <= self.prefetch_limit // 4:
            self._ramp_s = now
        epoch.started += 1
        epoch.started_bytes += size

    def landed(self, size: int, seconds: float, is_first: bool, now: float) -> None:
        """A request's next bytes arrived, `seconds` after it was sent or after those before."""
        self._served |= is_first and now - seconds >= self._stepped_s
        self._epoch.landed(size, seconds, is_first, now)

    def ended(self, in_flight: int, now: float) -> None:
        """A request ended, well or not; so many are left."""
        self._epoch.moved(in_flight, now)

    def is_due(self, now: float) -> bool:
        """Whether there is something to `review`."""
        return self._epoch.is_complete(self.limit, now)

    def review(self, now: float, is_busy: bool) -> None:
        """Draw the conclusion of a complete epoch. `is_busy`: no core is left for more requests."""
        epoch = self._epoch
        epoch.moved(epoch.in_flight, now)
        self._epoch = Epoch(now, epoch.in_flight)
        if now < self._calm_after_s:
            return
        if epoch.mean_in_flight < BOUND_FRACTION * self.prefetch_limit:
            return
        if self._ceiling is not None:
            self._recover(self._ceiling, now)
        else:
            size = self._budget.block_size * self.range_blocks
            self._climb(Level(self.limit, epoch.rate(size)), now, is_busy)

    def throttled(self, now: float, retry_after_s: float | None) -> None:
        """The store asked to slow down: stop prefetch as long as it says, go on with less."""
        pause = min(retry_after_s or 0.0, RETRY_AFTER_MAX_S)
        self.prefetch_after_s = max(self.prefetch_after_s, now + pause)
        if now < self._calm_after_s:
            return
        self._calm_after_s = now + pause + CALM_S
        if self._ceiling is None:
            self._useful = self._base.limit if self._base else self.limit
        if self._served or self._ceiling is None:
            self._ceiling = float(self.limit)  # else it refuses whatever we ask: no sign of a limit
        self._served = False
        self._stepped_s = now + pause
        self._base = None
        self._range_wanted = min(2 * self._range_wanted, self._budget.range_blocks_max)
        if not self._raised:
            self._hold_s = HOLD_FIRST_S
        self._raised = False
        self._hold(now)
        self._become(max(min(LIMIT_MIN, self.limit), int(self.limit * THROTTLED_FACTOR)), now)

    def _climb(self, level: Level, now: float, is_busy: bool) -> None:
        base = self._base
        if base is None or level.limit <= base.limit:
            # Measured again and again at the same limit, an epoch's noise averages out.
            rate = level.rate if base is None else (base.rate + level.rate) / 2
            self._base = Level(level.limit, rate)
            if now >= self._hold_until_s and not is_busy:
                self._try_more(now)
        elif level.rate >= WORTH * base.rate:
            self._base = level
            self._hold_s = HOLD_FIRST_S
            if not is_busy:
                is_nearly_all = level.rate * base.limit >= NEARLY_ALL * base.rate * level.limit
                self._try_more(now, 4 if is_nearly_all else 2)
        elif not self._doubted:
            self._doubted = True  # connections that were just opened are slow: look once more
        else:
            self._hold(now)
            self._become(base.limit, now)

    def _try_more(self, now: float, factor: int = 2) -> None:
        self._doubted = False
        self._become(min(factor * self.limit, self._budget.connections_max), now)

    def _recover(self, ceiling: float, now: float) -> None:
        """Towards where it was when the store throttled, and after a rest a little beyond."""
        near = max(1, min(int(max(KNEE * ceiling, LIMIT_MIN)), self._budget.connections_max))
        if self.limit < near:
            step = self.limit if 4 * self.limit <= ceiling else max(1, int(ceiling / STEPS))
            self._become(min(self.limit + step, near), now)
        elif now >= self._hold_until_s:
            self._ceiling, self._raised = 1.25 * ceiling + 1, True
            self._hold_until_s = now + self._hold_s
            if KNEE * self._ceiling >= self._useful:
                self._ceiling = None
                self._range_wanted = self._budget.range_blocks
                self._become(self._useful, now)

    def _hold(self, now: float) -> None:
        self._hold_until_s = now + self._hold_s
        self._hold_s = min(2 * self._hold_s, HOLD_MAX_S)

    def _become(self, limit: int, now: float) -> None:
        if limit != self.limit:
            self.limit = limit
            self._epoch = Epoch(now, self._epoch.in_flight)
            self._ramp_s = now
