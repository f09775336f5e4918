"""The command line: what it says, on what terms, and how it ends."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from loaderhint import channel, hints
from loaderhint.__main__ import main
from loaderhint.doctor import Diagnosis, advice
from tests.harness.hint_server import HintServer

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def file(folder: Path) -> Path:
    """A file of 3000 bytes."""
    path = folder / "file.gguf"
    path.write_bytes(bytes(3000))
    return path


class Terminal(io.StringIO):
    """What a terminal shows."""

    def isatty(self) -> bool:
        return True


def test_warm_waits_and_says_what_came(
    server: HintServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`warm` asks for whole files, hears that all is done, and says how much there is."""
    server.behaviour.ready_share = 1.0
    assert main(["warm", str(file)]) == 0
    assert capsys.readouterr().out == "2.9 KiB of 2.9 KiB are here\n"
    assert main(["warm", "--json", str(file), str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ready_bytes"], found["total_bytes"], found["failed"]) == (6000, 6000, [])


def test_warm_that_fails_says_why(
    server: HintServer,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file the daemon cannot fetch is a sentence and exit status 1."""
    monkeypatch.setattr(hints, "_SETTLED_S", 0.1)
    server.behaviour.announce_failure = "the object is gone"
    assert main(["warm", str(file)]) == 1
    seen = capsys.readouterr()
    assert seen.out == "1.5 KiB of 2.9 KiB are here\n"
    assert "the object is gone" in seen.err


def test_warm_by_attributes(
    server: HintServer,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the socket the verbs do it: prefetch once, then progress until all is here."""
    server.behaviour.hello = {"protocol": 2}
    verbs: list[str] = []

    def ask(target: int | str, verb: str) -> dict[str, object] | None:
        verbs.append(verb)
        ready = 1000 * verbs.count("progress")
        return {"v": 1, "ready_bytes": min(ready, 3000), "total_bytes": 3000}

    monkeypatch.setattr(channel, "ask", ask)
    assert main(["warm", str(file)]) == 0
    assert capsys.readouterr().out == "2.9 KiB of 2.9 KiB are here\n"
    assert verbs[0] == "prefetch"
    assert set(verbs[1:]) == {"progress"}
    verbs.clear()
    assert main(["progress", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["ready_bytes"] == 1000


def test_the_progress_of_a_folder_nobody_planned(
    server: HintServer,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is that of its files."""
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(b"x")

    def ask(target: int | str, verb: str) -> dict[str, object] | None:
        here = 0 if target == str(folder) else 100
        return {"ready_bytes": here, "total_bytes": 2 * here}

    monkeypatch.setattr(channel, "ask", ask)
    assert main(["progress", str(folder)]) == 0
    assert capsys.readouterr().out == "200 B of 400 B are here\n"
    assert server.requests == []


def test_the_bar_is_for_terminals(
    server: HintServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a bar is drawn and wiped away; nothing of it is in a pipe."""
    server.behaviour.ready_share = 1.0
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["warm", str(file)]) == 0
    assert "[##############################] 100% of 2.9 KiB" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_without_a_daemon_it_fails_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mount, no such path: one sentence, no traceback, exit status 1."""
    for command in ("warm", "progress"):
        assert main([command, str(folder)]) == 1
        seen = capsys.readouterr()
        assert seen.out == ""
        assert len(seen.err.splitlines()) == 1
    for command in ("warm", "progress", "doctor"):
        assert main([command, str(folder / "gone\x1b[2J")]) == 1
        seen = capsys.readouterr()
        assert "No such file" in seen.err
        assert "\x1b" not in seen.err


def test_the_doctor_of_a_mount(
    server: HintServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`doctor` names the channel, its features and the file system."""
    assert main(["doctor", "--json", str(file.parent)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["filesystem"], found["channel"]) == ("fuse.fusefs", "socket")
    assert found["features"] == ["slots", "warm"]
    assert found["round_trip_ms"] > 0
    assert (found["files"], found["size_bytes"]) == (1, 3000)
    assert len(server.of("stats")) == 1
    assert main(["doctor", str(file)]) == 0
    assert "socket (slots, warm)" in capsys.readouterr().out


def test_the_doctor_of_a_plain_disk(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off a mount it says so, and fails, so that a script can tell."""
    assert main(["doctor", str(file)]) == 1
    assert "not on a mount of fusefs" in capsys.readouterr().out


def test_advice_follows_from_what_was_seen() -> None:
    """Each defect has its sentence; where nothing is wrong, none is given."""

    def seen(channel: str, features: tuple[str, ...], kb: int, pushes: bool) -> list[str]:
        diagnosis = Diagnosis("/m", "fuse.fusefs", channel, features, 0.1, "1", kb, pushes, 1, 1, 0)
        return list(advice(diagnosis))

    assert seen("socket", ("slots", "warm"), 128, True) == []
    assert seen("socket", ("slots", "warm"), 1024, False) == []
    assert "128 KiB" in seen("socket", ("slots", "warm"), 128, False)[0]
    assert "one copy more" in seen("socket", ("warm",), 1024, True)[0]
    assert "Only whole files" in seen("xattr", (), 1024, True)[0]
    assert "takes no hints" in seen("none", (), 1024, True)[0]


def test_wrong_usage_is_exit_status_2() -> None:
    """As a module it runs, and a mistake is told from a failure."""
    run = subprocess.run(
        [sys.executable, "-m", "loaderhint", "heat", "/"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "invalid choice" in run.stderr
