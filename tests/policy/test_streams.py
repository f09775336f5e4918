"""Streams: forward, backward, interleaved, reordered; and what is not one."""

from fusefs.objects import Extent
from fusefs.policy.streams import (
    STREAMS_MAX,
    TOLERANCE_AHEAD_BYTES,
    WINDOW_FIRST_BYTES,
    StreamTracker,
)

MIB = 1 << 20


def at(mebibyte: int, size: int = MIB) -> Extent:
    return Extent(mebibyte * MIB, mebibyte * MIB + size)


def test_a_forward_run_is_one_stream_whose_window_doubles() -> None:
    """Three accesses in a row make one stream with twice the first window."""
    tracker = StreamTracker(256 * MIB)
    for i in range(3):
        stream = tracker.access(at(i))
    assert len(tracker.streams) == 1
    assert (stream.direction, stream.stop) == (1, 3 * MIB)
    assert stream.window_bytes == 2 * WINDOW_FIRST_BYTES


def test_a_backward_run_is_one_stream_going_down() -> None:
    """Glibc's backward memcpy out of a mapping is recognised."""
    tracker = StreamTracker(256 * MIB)
    for i in (100, 99, 98):
        stream = tracker.access(at(i))
    assert len(tracker.streams) == 1
    assert (stream.direction, stream.start) == (-1, 98 * MIB)


def test_interleaved_streams_stay_apart() -> None:
    """Three dtype streams read in turn are three streams, each with its own window."""
    tracker = StreamTracker(256 * MIB)
    for i in range(6):
        for base in (0, 1000, 2000):
            tracker.access(at(base + i))
    assert len(tracker.streams) == 3
    assert all(s.direction == 1 and s.window_bytes > WINDOW_FIRST_BYTES for s in tracker.streams)


def test_reordered_readahead_pieces_do_not_break_a_stream() -> None:
    """Pieces of one window that swap places still belong to it."""
    tracker = StreamTracker(256 * MIB)
    for i in (0, 1, 3, 2, 5, 4, 6):
        tracker.access(at(i))
    assert len(tracker.streams) == 1
    assert tracker.streams[0].stop == 7 * MIB


def test_far_jumps_are_new_streams_without_a_window() -> None:
    """Random access asks for nothing beyond what it reads."""
    tracker = StreamTracker(256 * MIB)
    for base in (0, 5000, 300, 9000):
        stream = tracker.access(at(base))
        assert (stream.direction, stream.window_bytes) == (0, 0)


def test_the_number_of_streams_is_bounded() -> None:
    """The least recently used stream is forgotten first."""
    tracker = StreamTracker(256 * MIB)
    step = 3 * TOLERANCE_AHEAD_BYTES // MIB
    for i in range(STREAMS_MAX + 5):
        tracker.access(at(i * step))
    assert len(tracker.streams) == STREAMS_MAX
    assert tracker.streams[0].start == 5 * step * MIB


def test_the_window_is_bounded() -> None:
    """However long the stream, its window stops growing at the limit."""
    tracker = StreamTracker(16 * MIB)
    for i in range(20):
        stream = tracker.access(at(i))
    assert stream.window_bytes == 16 * MIB


def test_in_files_of_unknown_kind_a_window_is_earned() -> None:
    """What was left out on the way counts against the window; reading in order earns it fast."""
    dense, sparse = StreamTracker(256 * MIB, 0, 2), StreamTracker(256 * MIB, 0, 2)
    for i in range(20):
        ordered, chance = dense.access(at(i)), sparse.access(at(10 * i))
    assert ordered.window_bytes == 2 * 17 * MIB
    assert chance.window_bytes == 0
