"""Asking mounts that answer badly or not at all, and waiting for processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fusefs.client import ask_mount, ask_mounts, open_processes, process_ids, wait_ended
from tests.cli.commandline import run_fusefs
from tests.cli.unanswered import open_unanswered

SOME = "import sys; print(flush=True); sys.stdin.read()  # fusefs"
"""A process that lives until its stdin is closed and looks like ours."""


def _start(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    # The kernel shows its command line only some time after exec.
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def test_a_mount_that_hangs_does_not_hang_who_asks(tmp_path: Path) -> None:
    """A mount nobody serves "does not answer", within the limit given."""
    with open_unanswered(tmp_path):
        answers = ask_mounts([str(tmp_path)] * 3, timeout_s=0.3)
    assert [answer.trouble for answer in answers] == ["does not answer"] * 3
    assert not any(answer.dead or answer.stats for answer in answers)


def test_a_dead_mount_is_told_apart(tmp_path: Path) -> None:
    """A mount without a daemon is dead, not slow."""
    with open_unanswered(tmp_path) as mount:
        mount.die()
        answer = ask_mount(str(tmp_path))
    assert answer.dead
    assert answer.stats is None
    assert "not connected" in str(answer.trouble)


def test_a_folder_that_is_no_mount_gives_no_statistics(tmp_path: Path) -> None:
    """Whatever lies there instead of a mount is an answer with a reason, not an exception."""
    for path in (tmp_path, tmp_path / "missing"):
        answer = ask_mount(str(path))
        assert answer.stats is None
        assert not answer.dead
        assert "gives no statistics" in str(answer.trouble)


def test_statistics_that_are_no_object_are_refused(tmp_path: Path) -> None:
    """Only a JSON object counts as statistics."""
    for text in (b"[]", b"not json", b""):
        os.setxattr(tmp_path, "user.fusefs.stats", text)
        assert ask_mount(str(tmp_path)).trouble == "gives statistics that cannot be read"
    os.setxattr(tmp_path, "user.fusefs.stats", b'{"v": 1}')
    assert ask_mount(str(tmp_path)).stats == {"v": 1}


def test_process_ids_come_from_statistics_of_any_version() -> None:
    """All pids there are, and none where a version has none."""
    pids = {"keeper": 1, "daemon": 2, "spawner": None, "workers": [4, 5]}
    assert process_ids({"pids": pids}) == [1, 2, 4, 5]
    assert process_ids({}) == []


def test_waiting_ends_with_the_last_process() -> None:
    """The wait is over when all have ended, and gives up when time is up."""
    with _start(SOME) as first, _start(SOME) as second:
        assert second.stdin is not None
        with open_processes([first.pid, second.pid]) as processes:
            assert len(processes) == 2
            assert not wait_ended(processes, 0.05)
            second.stdin.close()
            assert not wait_ended(processes, 0.05)
            assert first.stdin is not None
            first.stdin.close()
            assert wait_ended(processes, 20)


def test_processes_of_others_and_ended_ones_are_not_waited_for() -> None:
    """A number that now belongs to another program, or to none, is left alone."""
    with _start(SOME.partition("#")[0]) as stranger, _start("print()  # fusefs") as ended:
        ended.wait()
        with open_processes([stranger.pid, ended.pid]) as processes:
            assert processes == []
        assert wait_ended([], 0)


def test_status_of_a_mount_that_hangs(tmp_path: Path) -> None:
    """`fusefs status` says which mount does not answer, and fails, in bounded time."""
    with open_unanswered(tmp_path):
        ended = run_fusefs("status", tmp_path)
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.sentence == f"{tmp_path} does not answer"


def test_umount_removes_a_dead_mount(tmp_path: Path) -> None:
    """`fusefs umount` needs no daemon."""
    with open_unanswered(tmp_path) as mount:
        mount.die()
        ended = run_fusefs("umount", tmp_path)
        assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")
        assert not os.path.ismount(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_umount_and_status_of_what_is_no_fusefs_mount(tmp_path: Path) -> None:
    """A folder, or another file system's mount, is not touched and exits 1."""
    for command in ("umount", "status"):
        for path in (tmp_path, Path("/proc")):
            ended = run_fusefs(command, path)
            assert ended.status == 1
            assert ended.sentence == f"{path} is not a fusefs mount"
