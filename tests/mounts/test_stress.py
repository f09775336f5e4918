"""A short run of the stress (`python -m tests.stress` runs it for as long as wanted)."""

from __future__ import annotations

from tests.stress.run import PAUSE_MAX_S, run_stress

SECONDS = 15


def test_a_crowd_of_readers_makes_progress_and_sees_exact_bytes() -> None:
    """64 readers of every kind, with pushes, evictions, dropped pages and little memory."""
    report = run_stress(SECONDS)
    assert report.wrong == 0
    assert report.operations > 1000
    assert report.longest_s < PAUSE_MAX_S
    assert report.killed == 0
    assert report.counters["bytes_pushed"] > 0
    assert report.counters["read_errors"] == 0
