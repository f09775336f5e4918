"""When a daemon that lives is taken for hung.

It beats every second. The one idea: what is counted is looks, not seconds. On a machine that stands
still altogether (a paused virtual machine, all CPU time stolen) whoever looks stands still too, and
afterwards it has missed one look, whatever the clock says.
"""

from __future__ import annotations

LOOK_S = 2.0
"""From one look to the next."""

MISSES_MAX = 10
"""Looks in a row without a beat: 20 s. A daemon's longest step is some seconds (a listing of
500,000 names, on one core of several busy processes); loaders wait minutes, a read 120 s."""


class Heartbeat:
    """Looks at one daemon.

    The mutable state of Heartbeat is the beats at the last look, when that was, and how many looks
    in a row saw none. It begins unwatched.
    """

    def __init__(self) -> None:
        self._watches = False
        self._beats = 0
        self._looked_s = 0.0
        self._misses = 0

    def begin(self, beats: int, now_s: float) -> None:
        """A daemon serves from now on."""
        self._watches, self._beats, self._looked_s, self._misses = True, beats, now_s, 0

    def end(self) -> None:
        """None does."""
        self._watches = False

    def is_lost(self, beats: int, now_s: float) -> bool:
        """Look; a look that comes before its time is none."""
        if not self._watches:
            return False
        if beats != self._beats:
            self._beats, self._misses, self._looked_s = beats, 0, now_s
        elif now_s - self._looked_s >= LOOK_S:
            self._misses += 1
            self._looked_s = now_s
        return self._misses >= MISSES_MAX
