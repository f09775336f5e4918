"""Recognising streams: runs of accesses in one direction in one file.

Judged per file, never per handle: real loaders open a file twice, share descriptors between
threads, interleave two to four dtype streams, fault backwards out of memcpy, and the kernel's
readahead reorders what it asks. So up to `STREAMS_MAX` streams live side by side, each with a
tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusefs.objects import Extent

MIB = 1 << 20

STREAMS_MAX = 16
"""SGLang and vLLM load with 8 threads; twice that, and the oldest stream is forgotten."""

TOLERANCE_AHEAD_BYTES = 16 * MIB
"""A gap a stream may skip: norms and biases that another dtype stream reads lie between weights."""

TOLERANCE_BEHIND_BYTES = 4 * MIB
"""How far back a piece may come: readahead pieces of one window arrive in any order."""

WINDOW_FIRST_BYTES = 4 * MIB
"""Window after the second access in a row; doubles with every further one."""


@dataclass(slots=True)
class Stream:
    """One run of accesses: its latest hull `[start, stop)` and where it is going.

    `direction` is +1, -1, or 0 while only one access was seen. `frontier` is the next block to
    fetch ahead of it; None makes the plan begin at the hull's edge again. `reread` counts blocks
    it came for although they had been read before.
    """

    start: int
    stop: int
    direction: int
    window_bytes: int
    frontier: int | None = None
    reread: int = 0


class StreamTracker:
    """The streams of one file.

    The mutable state of StreamTracker is `streams`, most recently used last.
    INVARIANT: len(streams) <= STREAMS_MAX.
    """

    def __init__(self, window_max_bytes: int, window_new_bytes: int = 0) -> None:
        self.window_max_bytes = window_max_bytes
        self.window_new_bytes = window_new_bytes
        self.streams: list[Stream] = []

    def access(self, extent: Extent) -> Stream:
        """Account for one access: the stream it continues, grown, or a new one."""
        for stream in reversed(self.streams):
            direction = _continues(stream, extent)
            if direction:
                break
        else:
            stream = Stream(extent.start, extent.stop, 0, self.window_new_bytes)
            self.streams.append(stream)
            if len(self.streams) > STREAMS_MAX:
                del self.streams[0]
            return stream
        if direction != stream.direction:
            stream.direction, stream.frontier = direction, None
        stream.start = min(stream.start, extent.start) if direction < 0 else extent.start
        stream.stop = max(stream.stop, extent.stop) if direction > 0 else extent.stop
        grown = max(WINDOW_FIRST_BYTES, stream.window_bytes * 2)
        stream.window_bytes = min(grown, self.window_max_bytes)
        self.streams.remove(stream)
        self.streams.append(stream)
        return stream


def _continues(stream: Stream, extent: Extent) -> int:
    """+1 or -1 if `extent` continues `stream` in that direction, 0 if it does not."""
    behind = TOLERANCE_BEHIND_BYTES if stream.direction else 0
    if stream.direction >= 0:
        low = (stream.stop - behind) if stream.direction else stream.start
        if low <= extent.start <= stream.stop + TOLERANCE_AHEAD_BYTES:
            return 1
    if stream.direction <= 0:
        high = (stream.start + behind) if stream.direction else stream.stop
        if stream.start - TOLERANCE_AHEAD_BYTES <= extent.stop <= high:
            return -1
    return 0
