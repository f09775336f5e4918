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

PROVEN_BYTES = 3 * MIB
"""In a file of unknown kind nothing is fetched ahead of a stream before it has read so much. One
pread of 1 MiB at any offset is up to 3 MiB of READs in order (measured with 1 MiB of the kernel's
readahead, Linux 6.18): not yet a reader in order."""

WINDOW_PER_READ = 2
"""From there on the window is at most twice what was read beyond that, and there is none for a
stream that left out a quarter of its way: random reads that are near each other by chance bring
little along, and who reads in order still trebles the lead with each round trip."""


@dataclass(slots=True)
class Stream:
    """One run of accesses: its latest hull `[start, stop)` and where it is going.

    `direction` is +1, -1, or 0 while only one access was seen. `frontier` is the next block to
    fetch ahead of it; None makes the plan begin at the hull's edge again. `read_bytes` were asked
    for on a way of `span_bytes`; `reread` counts blocks it came for although they had been read.
    """

    start: int
    stop: int
    direction: int
    window_bytes: int
    frontier: int | None = None
    read_bytes: int = 0
    span_bytes: int = 0
    reread: int = 0


class StreamTracker:
    """The streams of one file.

    The mutable state of StreamTracker is `streams`, most recently used last.
    INVARIANT: len(streams) <= STREAMS_MAX.
    """

    def __init__(
        self, window_max_bytes: int, window_new_bytes: int = 0, window_per_read: int | None = None
    ) -> None:
        self.window_max_bytes = window_max_bytes
        self.window_new_bytes = window_new_bytes
        self.window_per_read = window_per_read
        self.streams: list[Stream] = []

    def access(self, extent: Extent) -> Stream:
        """Account for one access: the stream it continues, grown, or a new one."""
        for stream in reversed(self.streams):
            direction = _continues(stream, extent)
            if direction:
                break
        else:
            stream = Stream(extent.start, extent.stop, 0, self.window_new_bytes)
            stream.read_bytes = stream.span_bytes = extent.size
            self.streams.append(stream)
            if len(self.streams) > STREAMS_MAX:
                del self.streams[0]
            return stream
        if direction != stream.direction:
            stream.direction, stream.frontier = direction, None
        ahead = extent.stop - stream.stop if direction > 0 else stream.start - extent.start
        stream.read_bytes += extent.size
        stream.span_bytes += max(0, ahead)
        stream.start = min(stream.start, extent.start) if direction < 0 else extent.start
        stream.stop = max(stream.stop, extent.stop) if direction > 0 else extent.stop
        grown = max(WINDOW_FIRST_BYTES, stream.window_bytes * 2)
        if self.window_per_read is not None:
            dense = 4 * stream.read_bytes >= 3 * stream.span_bytes
            proven = min(stream.read_bytes, stream.span_bytes) - PROVEN_BYTES if dense else 0
            grown = min(grown, self.window_per_read * max(0, proven))
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
