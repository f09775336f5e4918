"""What a client says and hears: the files of a plan, its progress, its events.

Values and one queue; nothing here talks to anybody. The one idea: a plan of any size is told in
frames and within limits that the daemon named, and what it says is believed only where it has the
shape of the protocol.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loaderhint.plan import Extent, at_most

EVENTS_MAX = 100_000
"""That wait to be taken: more than a daemon that keeps to its window has blocks to announce."""

_EXTENTS_PER_FRAME = 20_000
"""Of up to 40 bytes each: below the limit of a frame."""

_FILES_PER_FRAME = 5_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan wants of one file. Without extents: all of it."""

    inode: int
    extents: tuple[Extent, ...] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of a job on one host, whose plans are fetched as one. `id` names the job."""

    id: str
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a plan is. Bytes count what was asked for; `bytes_per_s` is the recent rate.

    `in_flight` is being fetched now.
    """

    ready_bytes: int
    total_bytes: int
    bytes_per_s: float = 0.0
    in_flight: int = 0


class Events:
    """What the daemon says of one plan, in the order it came.

    The mutable state of Events is the queue. INVARIANT: at most EVENTS_MAX are in it.
    """

    def __init__(self) -> None:
        self._queue: deque[dict[str, Any]] = deque()
        self._came = threading.Condition()

    def put(self, event: dict[str, Any]) -> bool:
        """Add one; False if too many wait already."""
        with self._came:
            if len(self._queue) >= EVENTS_MAX:
                return False
            self._queue.append(event)
            self._came.notify()
            return True

    def take(self, timeout_s: float) -> dict[str, Any] | None:
        """Wait for the next; None after `timeout_s`."""
        with self._came:
            if not self._queue:
                self._came.wait(timeout_s)
            return self._queue.popleft() if self._queue else None


def frames_of(
    wanted: Sequence[Wanted], files_max: int, extents_max: int
) -> Iterator[list[dict[str, Any]]]:
    """`files` of a plan for one message after the other, at most so many in all.

    Files beyond the limit are left out; of extents beyond it the closest become one.
    """
    total = sum(len(one.extents or ()) for one in wanted)
    files: list[dict[str, Any]] = []
    room = _EXTENTS_PER_FRAME
    for one in wanted[:files_max]:
        for extents in _slices(one, total, extents_max):
            size = len(extents or ())
            if size > room or len(files) >= _FILES_PER_FRAME:
                yield files
                files, room = [], _EXTENTS_PER_FRAME
            room -= size
            files.append({"inode": one.inode} | ({} if extents is None else {"extents": extents}))
    if files:
        yield files


def _slices(one: Wanted, total: int, extents_max: int) -> Iterator[list[Extent] | None]:
    """The extents of one file, as many at a time as a frame has room for."""
    if one.extents is None:
        yield None
        return
    extents = list(one.extents)
    if total > extents_max:
        extents = at_most(extents, max(1, extents_max * len(extents) // total))
    for start in range(0, len(extents), _EXTENTS_PER_FRAME):
        yield extents[start : start + _EXTENTS_PER_FRAME]


def progress_of(answer: Mapping[str, Any] | None) -> Progress | None:
    """The progress in an answer or an event; None if there is none."""
    if answer is None:
        return None
    ready, total = answer.get("ready_bytes"), answer.get("total_bytes")
    rate, flying = answer.get("bytes_per_s"), answer.get("in_flight")
    if type(ready) is not int or type(total) is not int:
        return None
    return Progress(
        ready,
        total,
        float(rate) if isinstance(rate, (int, float)) else 0.0,
        flying if type(flying) is int else 0,
    )
