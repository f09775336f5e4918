"""When to try again what was given up: after a pause that grows, with one probe for each.

Pure: times are arguments. The one idea: whoever waits for bytes goes on asking by himself, so what
nobody waits for needs no more than a probe now and then while nothing arrives, and goes on in full
with the first byte that does.
"""

from __future__ import annotations

PAUSE_FIRST_S = 0.5
"""A few round trips: what was given up had failed several times, over a second or two."""

PAUSE_MAX_S = 10.0
"""A store that came back while nobody waited is noticed within this time; a file that will never
come costs a request in ten seconds."""


class Setback:
    """Prefetch that was given up, of one file or of all of them.

    The mutable state of Setback is how often it was tried in vain, and until when it rests.
    INVARIANT: `until_s` is 0 exactly while there is no setback.
    """

    __slots__ = ("_tries", "until_s")

    def __init__(self) -> None:
        self._tries = 0
        self.until_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether something was given up and nothing has arrived since."""
        return self._tries > 0

    def may_try(self, now: float) -> bool:
        """Whether there is no setback, or its pause is over."""
        return now >= self.until_s

    def gave_up(self, now: float) -> None:
        """Something was given up. What follows in the same wave says nothing new."""
        if not self._tries:
            self._rest(now)

    def tried(self, now: float) -> None:
        """A request was sent: during a setback it is the probe, and the next one waits longer."""
        if self._tries:
            self._rest(now)

    def landed(self) -> None:
        """Bytes arrived: go on in full."""
        self._tries = 0
        self.until_s = 0.0

    def _rest(self, now: float) -> None:
        self._tries += 1
        self.until_s = now + min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(self._tries - 1, 10))
