"""The protocol between the command line and the keeper, against a stand-in for the keeper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fusefs.cli.start import StartFailed, mount_in_background, mount_in_front
from tests.cli.commandline import ROOT

LIMIT_S = 30.0
"""For what takes milliseconds on an idle machine."""


def keeper_for(role: str, folder: Path) -> list[str]:
    """The command of a stand-in."""
    return [sys.executable, "-S", str(Path(__file__).with_name("stand_in.py")), role, str(folder)]


def job_for(folder: Path, *, foreground: bool = False) -> dict[str, Any]:
    """A job; nothing is mounted for it."""
    mountpoint = str(folder / "mnt")
    return {"source": "s3://b/", "mountpoint": mountpoint, "config": {}, "foreground": foreground}


def start_in_front(job: dict[str, Any], keeper: list[str]) -> None:
    """Start in front; that the mount answers is noted in a file beside the mountpoint."""
    mount_in_front(job, Path(job["mountpoint"]).with_name("ready").touch, keeper)


def _wait_for(path: Path) -> str:
    until = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.01)
    return path.read_text()


def _is_gone(pid: int) -> bool:
    """Whether no such process lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def _open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _start(role: str, folder: Path, where: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.start_with_stand_in", role, str(folder), where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_mount_that_answers_is_left_running(tmp_path: Path) -> None:
    """The command is done when the keeper says so; the keeper stays, in a session of its own."""
    before = _open_fds()
    keeper = mount_in_background(job_for(tmp_path), keeper_for("serves", tmp_path))
    assert keeper.poll() is None
    assert _open_fds() == before
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["job"] == job_for(tmp_path)
    assert (seen["cwd"], seen["leads_session"], seen["stdout"]) == ("/", True, "/dev/null")
    # stdin, stdout, stderr, the report's pipe, and the folder of descriptors being read.
    assert len(seen["open"]) == 5
    keeper.terminate()
    assert keeper.wait(LIMIT_S) == 0


def test_the_job_is_in_no_argument(tmp_path: Path) -> None:
    """Source and settings go through a file without a name: no process list shows them."""
    keeper = mount_in_background(job_for(tmp_path), keeper_for("serves", tmp_path))
    keeper.terminate()
    keeper.wait(LIMIT_S)
    arguments = json.loads((tmp_path / "seen").read_text())["arguments"]
    assert "s3://b/" not in " ".join(arguments)
    assert all(text.isdigit() for text in arguments[-2:])


@pytest.mark.parametrize("start", [mount_in_background, start_in_front])
@pytest.mark.parametrize(
    ("role", "status", "said"),
    [
        ("refuses", 2, "no such bucket"),
        ("dies", 1, "the keeper died before the mount was ready"),
        ("crashes", 1, "the keeper died before the mount was ready"),
        ("babbles", 1, "the keeper died before the mount was ready"),
    ],
)
def test_a_mount_that_fails_leaves_nothing(
    tmp_path: Path, start: Any, role: str, status: int, said: str
) -> None:
    """The keeper's sentence and status are the command's; a keeper without one has died."""
    before = _open_fds()
    job = job_for(tmp_path, foreground=start is start_in_front)
    with pytest.raises(StartFailed, match=said) as caught:
        start(job, keeper_for(role, tmp_path))
    assert caught.value.status == status
    assert _is_gone(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "ready").exists()
    assert _open_fds() == before


def test_what_a_dead_keeper_left_running_is_ended(tmp_path: Path) -> None:
    """Children of a keeper that died before it was ready do not outlive the command."""
    with pytest.raises(StartFailed):
        mount_in_background(job_for(tmp_path), keeper_for("abandons", tmp_path), timeout_s=1.0)
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + LIMIT_S
    while not _is_gone(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_keeper_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that takes too long fails, and a keeper deaf to SIGTERM is killed."""
    monkeypatch.setattr("fusefs.cli.start.END_TIMEOUT_S", 0.2)
    with pytest.raises(StartFailed, match="did not come up in time"):
        mount_in_background(job_for(tmp_path), keeper_for("hangs", tmp_path), timeout_s=0.5)
    # It may have been killed before it wrote its number.
    pid = tmp_path / "pid"
    assert not pid.exists() or _is_gone(int(pid.read_text()))


def test_a_keeper_that_cannot_be_started_is_a_sentence(tmp_path: Path) -> None:
    """No interpreter, no memory: one sentence, exit status 1."""
    before = _open_fds()
    with pytest.raises(StartFailed, match="cannot start the mount's processes: No such file"):
        mount_in_background(job_for(tmp_path), ["/nonexistent/python"])
    assert _open_fds() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_front_signals_end_the_mount(tmp_path: Path, number: signal.Signals) -> None:
    """With -f any polite signal unmounts, and the command ends as the keeper does."""
    with _start("serves", tmp_path, "front") as command:
        _wait_for(tmp_path / "ready")
        command.send_signal(number)
        output, _ = command.communicate(timeout=LIMIT_S)
    assert (command.returncode, output) == (0, "")
    assert (tmp_path / "told").exists()
    seen = json.loads((tmp_path / "seen").read_text())
    assert (seen["leads_session"], seen["job"]["foreground"]) == (False, True)


@pytest.mark.parametrize("where", ["front", "back"])
def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path, where: str) -> None:
    """Ctrl-C before the mount is ready ends the keeper in order and fails."""
    with _start("starts slowly", tmp_path, where) as command:
        _wait_for(tmp_path / "waits")
        command.send_signal(signal.SIGINT)
        output, _ = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 1
    assert output == "interrupted before the mount was ready\n"
    assert (tmp_path / "told").exists()
    assert _is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("role", "status", "said"),
    [
        ("breaks", 4, "the mount ended with an error"),
        ("is killed", 1, "the mount's keeper was killed by SIGKILL"),
    ],
)
def test_in_front_a_broken_mount_is_a_failure(
    tmp_path: Path, role: str, status: int, said: str
) -> None:
    """With -f a mount that ends by itself with an error ends the command with one."""
    with pytest.raises(StartFailed, match=said) as caught:
        start_in_front(job_for(tmp_path, foreground=True), keeper_for(role, tmp_path))
    assert caught.value.status == status
    assert (tmp_path / "ready").exists()


def test_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    """Starting a mount leaves no signal handler behind."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StartFailed):
        mount_in_background(job_for(tmp_path), keeper_for("refuses", tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
