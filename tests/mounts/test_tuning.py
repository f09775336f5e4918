"""The kernel's knobs, written to files that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.config import KernelConfig
from fusefs.mount.tuning import ReadAhead, may_abort, tune
from fusefs.policy.kinds import Kind
from tests.conftest import ExpectedWarnings

DEVICE = "0:77"


@pytest.fixture
def sys_folder(tmp_path: Path) -> Path:
    """A /sys with the knobs of one mount at the kernel's defaults."""
    bdi = tmp_path / "class/bdi" / DEVICE
    connection = tmp_path / "fs/fuse/connections/77"
    bdi.mkdir(parents=True)
    connection.mkdir(parents=True)
    (bdi / "read_ahead_kb").write_text("128\n")
    (connection / "max_background").write_text("12\n")
    (connection / "congestion_threshold").write_text("9\n")
    (connection / "abort").write_text("")
    return tmp_path


def window(sys_folder: Path) -> int:
    return int((sys_folder / "class/bdi" / DEVICE / "read_ahead_kb").read_text())


def test_knobs_are_set_and_told(sys_folder: Path) -> None:
    """Both are written and read back; the congestion threshold is three quarters."""
    knobs = tune(KernelConfig(), DEVICE, sys_folder)
    assert all(knob.set for knob in knobs.values())
    assert window(sys_folder) == 4096
    threshold = sys_folder / "fs/fuse/connections/77/congestion_threshold"
    assert int(threshold.read_text()) == 96


def test_a_knob_that_is_not_there_is_told_of(
    sys_folder: Path, expect_warning: ExpectedWarnings
) -> None:
    """Without the list of connections, the status says what is missing."""
    expect_warning("max_background stays at")
    knobs = tune(KernelConfig(), "0:78", sys_folder.joinpath("nothing"))
    expect_warning("read_ahead_kb stays at")
    assert not knobs["max_background"].set
    assert "No such file" in (knobs["max_background"].why or "")


def test_the_window_follows_the_kind_of_file(sys_folder: Path) -> None:
    """Shards are opened with one block of readahead, others with all of it."""
    read_ahead = ReadAhead(KernelConfig(), sys_folder)
    read_ahead.opening(Kind.SHARD)
    assert window(sys_folder) == 128  # not ours to set before the mount is known
    tune(KernelConfig(), DEVICE, sys_folder)
    read_ahead.begin(DEVICE)
    seen = []
    for kind in (Kind.SHARD, Kind.OPAQUE, Kind.GGUF, Kind.ARCHIVE):
        read_ahead.opening(kind)
        seen.append(window(sys_folder))
    assert seen == [1024, 4096, 1024, 4096]


def test_a_smaller_wish_holds_for_all_files(sys_folder: Path) -> None:
    """What the user set is never exceeded."""
    read_ahead = ReadAhead(KernelConfig(read_ahead_kb=256), sys_folder)
    tune(KernelConfig(read_ahead_kb=256), DEVICE, sys_folder)
    read_ahead.begin(DEVICE)
    for kind in Kind:
        read_ahead.opening(kind)
        assert window(sys_folder) == 256


def test_only_a_connection_that_can_be_ended_is_pushed_to(sys_folder: Path) -> None:
    """Without the file to abort it by, the answer is no."""
    assert may_abort(DEVICE, sys_folder)
    assert not may_abort("0:78", sys_folder)
