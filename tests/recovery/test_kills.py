"""The short form of `python -m tests.recovery`: a few kills under load, each somewhere else."""

from __future__ import annotations

from pathlib import Path

from tests.harness.weed import Weed
from tests.recovery.run import make_plain, run_kills
from tests.recovery.upload import upload

KILLS = 6


def test_nobody_notices_kills_under_load(weed: Weed, tmp_path: Path) -> None:
    """Reads, faults, listings, loads with and without hints: right bytes, and not one error."""
    make_plain(tmp_path)
    source = f"s3://{upload(weed, tmp_path, 'kills')}"
    report = run_kills(tmp_path, source, KILLS, seed=2, environment=weed.environment)
    assert not report.complaints
    assert report.read_errors == 0
    assert len(report.kills) == KILLS
    assert report.restarts > 0
    assert report.operations > 0
