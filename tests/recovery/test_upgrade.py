"""`fusefs upgrade`: other code, the same mount, and readers who only wait."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from tests.harness.mounted import Mounted
from tests.recovery.played import BOUND_S, kill, open_copy, replace


def upgrade(mounted: Mounted) -> tuple[int, str]:
    """Run the command; its exit status and what it said."""
    done = mounted.run_cli("upgrade", str(mounted.path), timeout_s=BOUND_S)
    return done.returncode, done.stdout + done.stderr


def fetching(status: dict[str, Any]) -> set[int]:
    """The daemon, and all that come with it but the pusher."""
    pids = status["pids"]
    return {pids["daemon"], pids["spawner"], *pids["workers"]}


def test_every_process_is_new_and_no_reader_fails(code: Path, plain_files: Path) -> None:
    """The new version answers, the options stay, the keeper keeps its pid; nobody got an error."""
    want = (plain_files / "big.bin").read_bytes()
    with open_copy(code, plain_files, "--set", "mount.umask=077") as mounted:
        before = mounted.status()
        fd = os.open(mounted.path / "big.bin", os.O_RDONLY)
        stop, failures = threading.Event(), []

        def read() -> None:
            at = 0
            while not stop.is_set():
                at = (at + 7_654_321) % (len(want) - 4096)
                os.posix_fadvise(fd, at, 4096, os.POSIX_FADV_DONTNEED)
                if os.pread(fd, 4096, at) != want[at : at + 4096]:
                    failures.append(at)

        reader = threading.Thread(target=read)
        reader.start()
        replace(code / "fusefs" / "__init__.py", f'"{before["version"]}"', '"9.8.7"')
        try:
            assert upgrade(mounted) == (0, f"{before['version']} → 9.8.7\n")
            assert upgrade(mounted) == (0, "9.8.7 → 9.8.7\n")
        finally:
            stop.set()
            reader.join(BOUND_S)
        assert not reader.is_alive()
        assert not failures
        os.close(fd)
        after = mounted.status()
        assert after["version"] == "9.8.7"
        assert after["pids"]["keeper"] == before["pids"]["keeper"]
        assert not fetching(after) & fetching(before)
        assert (after["restarts"], after["upgrades"]["done"]) == (0, 2)
        assert after["counters"]["reads"] >= before["counters"]["reads"]
        assert after["uptime_s"] > before["uptime_s"]
        assert (mounted.path / "big.bin").stat().st_mode & 0o777 == 0o400
        assert not after["warnings"]


def test_what_cannot_take_over_is_refused_with_a_sentence(code: Path, plain_files: Path) -> None:
    """Another estate, a program that does not start, a daemon that does not: the old ones go on."""
    estate, keeper = code / "fusefs/mount/estate.py", code / "fusefs/mount/keeper.py"
    daemon = code / "fusefs/mount/daemon.py"
    with open_copy(code, plain_files) as mounted:
        pids = mounted.status()["pids"]
        replace(estate, "ESTATE_VERSION = 1", "ESTATE_VERSION = 2")
        status, said = upgrade(mounted)
        assert status == 1
        assert "its estate is of version 2, ours of version 1" in said
        replace(estate, "ESTATE_VERSION = 2", "ESTATE_VERSION = 1")

        works = keeper.read_text()
        keeper.write_text("raise SystemExit(3)")
        status, said = upgrade(mounted)
        assert (status, "does not start" in said) == (1, True)
        keeper.write_text(works)
        assert mounted.status()["pids"] == pids

        works = daemon.read_text()
        daemon.write_text("raise SystemExit(3)")
        status, said = upgrade(mounted)
        assert (status, "ended unexpectedly" in said) == (1, True)
        assert mounted.status()["pids"]["daemon"] == pids["daemon"]
        assert (mounted.path / "big.bin").read_bytes() == (plain_files / "big.bin").read_bytes()
        daemon.write_text(works)
        assert upgrade(mounted)[0] == 0
        assert mounted.status()["upgrades"]["refused"] == 3


def test_a_mount_without_its_keeper_is_not_upgraded(resumed: Mounted) -> None:
    """A sentence says what to do."""
    kill(resumed.status()["pids"]["keeper"])
    status, said = upgrade(resumed)
    assert status == 1
    assert "lost its keeper" in said
