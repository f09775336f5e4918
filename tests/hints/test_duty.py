"""What a peer pays for the daemon's time, and what it can see: pure parts of the hints."""

from __future__ import annotations

import time
from pathlib import Path

from fusefs.hints.duty import BURST_S, SHARE, Duty
from fusefs.hints.visible import is_visible, visible_roots


def test_short_work_is_free_and_long_work_is_waited_for() -> None:
    """A burst costs no pause; beyond it the pause keeps the peer at its share."""
    duty = Duty()
    with duty.working():
        pass
    assert duty.pause_s() == 0.0
    with duty.working():
        until = time.monotonic() + BURST_S + 0.05
        while time.monotonic() < until:
            pass
    pause = duty.pause_s()
    assert 0.5 * 0.05 / SHARE < pause < 4 * 0.05 / SHARE


TABLE = """\
22 1 0:20 / /proc rw - proc proc rw
46 27 0:41 / /mnt/models ro,nosuid - fuse.fusefs s3://x ro
47 27 0:41 /team\\040a/llama /model ro - fuse.fusefs s3://x ro
48 27 0:42 / /other ro - fuse.fusefs s3://y ro
"""


def test_visible_roots_are_those_of_the_device(tmp_path: Path) -> None:
    """By device number, with octal escapes undone; unknown processes are None."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "mountinfo").write_text(TABLE)
    assert visible_roots(7, "0:41", tmp_path) == ["/", "/team a/llama"]
    assert visible_roots(7, "0:99", tmp_path) == []
    assert visible_roots(8, "0:41", tmp_path) is None
    assert visible_roots(0, "0:41", tmp_path) is None


def test_a_path_is_visible_below_a_root_only() -> None:
    """Neighbours with the same beginning of a name are not below it."""
    assert is_visible("a/b.safetensors", ["/"])
    assert is_visible("team/llama/x", ["/team/llama"])
    assert is_visible("team/llama/x", ["/other", "/team/llama/x"])
    assert not is_visible("team/llama2/x", ["/team/llama"])
    assert not is_visible("team/x", ["/team/llama"])
    assert not is_visible("x", [])
