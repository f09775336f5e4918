"""Where the log of a mount goes, and who may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.harness.mounted import MountFailed, open_mount


def test_the_log_is_its_owners_alone(plain: Path, tmp_path: Path) -> None:
    """A new log has mode 0600, and is what all processes of the mount write errors to."""
    log = tmp_path / "fusefs.log"
    with open_mount(f"file://{plain}", "--set", f"log.file={log}") as mounted:
        pids = mounted.status()["pids"]
        for pid in (pids["daemon"], pids["spawner"], *pids["workers"]):
            assert Path(f"/proc/{pid}/fd/2").readlink() == log
    assert stat.filemode(log.stat().st_mode) == "-rw-------"


def test_a_log_of_another_user(plain: Path, tmp_path: Path) -> None:
    """Root logs to a file that belongs to somebody else, and goes on where it ended."""
    log = tmp_path / "theirs" / "fusefs.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("before\n")
    for path in (log, log.parent):
        os.chown(path, 1000, 1000)
    with open_mount(
        f"file://{plain}", "--set", f"log.file={log}", warnings_expected=True
    ) as mounted:
        os.kill(mounted.status()["pids"]["workers"][0], 9)
        assert (mounted.path / "big.bin").read_bytes() == (plain / "big.bin").read_bytes()
    lines = log.read_text().splitlines()
    assert lines[0] == "before"
    assert any("died" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda log: log.symlink_to("/etc/motd"), "is a symbolic link"),
        (lambda log: log.mkdir(), "Is a directory"),
    ],
    ids=["link", "folder"],
)
def test_a_log_that_is_none(plain: Path, tmp_path: Path, make: object, says: str) -> None:
    """No log is written through a link that somebody laid there; the mount says so, and is none."""
    log = tmp_path / "fusefs.log"
    assert callable(make)
    make(log)
    with (
        pytest.raises(MountFailed) as caught,
        open_mount(f"file://{plain}", "--set", f"log.file={log}"),
    ):
        pytest.fail("mounted")
    assert says in caught.value.stderr
    assert caught.value.stderr.count("\n") == 1
    assert caught.value.status == 2


def test_no_key_forges_a_line(tmp_path: Path) -> None:
    """Whatever a key holds, a message about it is one line of printable characters."""
    source, log = tmp_path / "source", tmp_path / "fusefs.log"
    source.mkdir()
    name = "evil\n2026-01-01 00:00:00,000 fusefs.daemon[1] ERROR forged \x1b[2J"
    (source / name).write_bytes(bytes(64 << 20))
    with open_mount(
        f"file://{source}", "--set", f"log.file={log}", warnings_expected=True
    ) as mounted:
        with (mounted.path / name).open("rb", buffering=0) as file:
            assert file.read(10) == bytes(10)
            (tmp_path / "new").write_bytes(b"new")
            (tmp_path / "new").rename(source / name)
            with pytest.raises(OSError, match="Stale"):
                os.pread(file.fileno(), 10, 48 << 20)
        kept = mounted.status()["warnings"]
    lines = log.read_text().splitlines()
    assert any("evil\\n2026" in line for line in lines)
    assert all(line.isprintable() and not line.startswith("2026-01-01") for line in lines)
    assert kept and all(line.isprintable() for line in kept)
