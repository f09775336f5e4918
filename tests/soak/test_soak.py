"""Short forms of the soak (`python -m tests.soak` runs it for as long as wanted)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import make_files
from tests.soak.cycles import run_cycles
from tests.soak.hours import OPTIONS, run_soak

MIB = 1 << 20
CYCLES = 20
WARM_S = 12.0
"""trio lets go of an idle thread after ten seconds."""
BILLED_SLOPE_MAX = 64 << 10
"""Bytes a cycle: one lost process record, thread stack or page table would be more."""

CONNECTIONS = 16
WORKERS_MAX = 4
MEMORY_MAX = (48 + 150) * MIB
"""As docs/semantics.md has it, for the soak's options."""


@pytest.mark.timeout(300)
def test_cycles_of_mount_load_and_unmount_leave_nothing(tmp_path: Path) -> None:
    """No process, mount, connection, file or descriptor; and memory stays as it was."""
    make_files(tmp_path)
    report = run_cycles(CYCLES, tmp_path)
    assert report.cycles == CYCLES
    assert report.wrong == 0
    assert report.left == []
    assert set(report.descriptors) == {report.descriptors[0]}
    assert report.billed_slope < BILLED_SLOPE_MAX


@pytest.mark.timeout(300)
def test_a_mount_that_was_used_by_everybody_is_as_it_was_before() -> None:
    """Every handle, stream, pin, peer and descriptor is back, and memory is within its bound."""
    assert "engine.connections=16" in OPTIONS
    report = run_soak(seconds=10.0, warm_s=WARM_S, stops=2)
    assert min(report.work.values()) > 0
    assert [stop.fixed for stop in report.stops] == [report.stops[0].fixed] * 3
    for stop in report.stops:
        assert stop.connections <= CONNECTIONS
        assert stop.fetch_threads <= CONNECTIONS + WORKERS_MAX
        assert stop.bytes <= MEMORY_MAX
