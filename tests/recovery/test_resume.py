"""A daemon is killed, and nobody who uses the mount can tell but by the time it took."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.hints.client import connect, inode
from tests.mounts.test_changes import wait_until
from tests.recovery.conftest import MIB
from tests.recovery.played import (
    BOUND_S,
    kill,
    kill_daemon,
    open_application,
    wait_replaced,
    wait_waiting,
)


def test_what_is_in_hand_and_what_comes_meanwhile_is_answered(
    resumed: Mounted, plain_files: Path
) -> None:
    """Reads, faults, O_DIRECT, names: taken by the dead daemon, or made while there was none."""
    pids = resumed.status()["pids"]
    with open_application(resumed, plain_files) as application:
        for worker in pids["workers"]:
            os.kill(worker, signal.SIGSTOP)  # so that what is asked for is taken and not answered
        application.do(
            "read-taken read 11",
            "fault-taken fault 17",
            "direct-taken direct 23",
            "list-taken list many",
        )
        wait_waiting(resumed, 4)
        os.kill(pids["keeper"], signal.SIGSTOP)
        try:
            kill(pids["daemon"])
            application.do(
                "read-between read 31",
                "fault-between fault 37",
                "direct-between direct 43",
                "open-between open w.safetensors",
                "list-between list other",
            )
            wait_waiting(resumed, 8)
            assert not application.has_results
        finally:  # else the application could not even be killed
            os.kill(pids["keeper"], signal.SIGCONT)
        application.do("fstat-between fstat .")  # the kernel may know this by itself
        assert set(application.results(10).values()) == {"exact"}
        application.do("read-after read 5", "stat-after stat many/a-file-with-number-3")
        assert set(application.results(2).values()) == {"exact"}
    status = resumed.status()
    assert status["restarts"] == 1
    assert status["last_end"] == "was killed by SIGKILL"
    assert status["counters"]["read_errors"] == 0
    assert any("took over" in line for line in status["warnings"])


def test_handles_outlive_many_daemons(resumed: Mounted, plain_files: Path) -> None:
    """Also such as were never read by the daemon that sees them closed; names lead on."""
    want = (plain_files / "big.bin").read_bytes()
    fds = [os.open(resumed.path / "big.bin", os.O_RDONLY) for _ in range(3)]
    direct = os.open(resumed.path / "big.bin", os.O_RDONLY | os.O_DIRECT)
    number = inode(resumed.path / "many")
    buffer = mmap.mmap(-1, 4096)
    for turn in range(3):
        kill_daemon(resumed)
        at = (7 + 11 * turn) * MIB
        assert os.pread(fds[turn], 4096, at) == want[at : at + 4096]
        assert os.preadv(direct, [buffer], at + MIB) == 4096
        assert buffer[:] == want[at + MIB : at + MIB + 4096]
        os.close(fds[turn])
        assert (resumed.path / "many").stat().st_ino == number
    os.close(direct)
    assert (resumed.path / "big.bin").read_bytes() == want
    status = resumed.status()
    assert status["restarts"] == 3
    assert status["counters"]["reads"] > 0


def test_a_listing_goes_on_where_it_was(tmp_path: Path) -> None:
    """Names that were there all the time are shown once, whatever came, went, and died."""
    plain = tmp_path / "plain"
    (plain / "many").mkdir(parents=True)
    stays = {f"a-name-that-stays-{n}" for n in range(1500)}
    for name in stays:
        (plain / "many" / name).touch()
    for n in range(300):
        (plain / "many" / f"leaves-{n}").touch()
    options = ("--set", "tree.ttl_s=0")
    with open_mount(f"file://{plain}", *options, warnings_expected=True) as mounted:
        seen = []
        with os.scandir(mounted.path / "many") as entries:
            for count, entry in enumerate(entries):
                seen.append(entry.name)
                if count in (10, 900):
                    kill_daemon(mounted)
                    for n in range(0, 300, 2):
                        (plain / "many" / f"leaves-{n}").unlink(missing_ok=True)
                        (plain / "many" / f"comes-{n}").touch()
        assert len(seen) == len(set(seen))
        assert stays <= set(seen)
        assert {name for name in seen if name.startswith("leaves")} <= {
            f"leaves-{n}" for n in range(300)
        }
        again = sorted(os.listdir(mounted.path / "many"))
        assert again == sorted(os.listdir(plain / "many"))


def test_hints_outlive_the_daemon(resumed: Mounted, plain_files: Path) -> None:
    """Slots that were handed out stay right; the socket takes connections while nobody serves."""
    want = (plain_files / "w.safetensors").read_bytes()
    pids = resumed.status()["pids"]
    with connect(resumed.path) as client:
        shard = inode(resumed.path / "w.safetensors")
        client.ask("plan", plan="p", mode="slots", files=[{"inode": shard}])
        size = client.ask("map", plan="p")["size_bytes"]
        slots = [client.event("slot")]
        with mmap.mmap(client.fds.pop(), size, prot=mmap.PROT_READ) as arena:
            os.kill(pids["keeper"], signal.SIGSTOP)
            kill(pids["daemon"])
            assert client.is_closed()
            with socket.socket(socket.AF_UNIX) as early:
                early.settimeout(BOUND_S)
                os.kill(pids["keeper"], signal.SIGCONT)
                early.connect(str(resumed.path / ".fusefs" / "socket"))
            wait_replaced(resumed)
            for slot in slots:
                at, start, length = slot["at"], slot["start"], slot["size"]
                assert arena[at : at + length] == want[start : start + length]
    with connect(resumed.path) as client:
        client.ask("plan", plan="p", files=[{"inode": shard}])
        client.ask("subscribe", plan="p")
        client.event("done")
        assert client.ask("progress", plan="p")["ready_bytes"] == len(want)


@pytest.mark.parametrize("victim", ["spawner", "pusher", "workers"])
def test_the_others_of_a_mount_are_replaced_by_the_daemon(
    resumed: Mounted, plain_files: Path, victim: str
) -> None:
    """Each by itself costs no error and no daemon."""
    wait_until(lambda: resumed.status()["pids"]["pusher"] > 0)
    pids = resumed.status()["pids"]
    dead = pids[victim] if victim == "workers" else [pids[victim]]
    for pid in dead:
        kill(pid)
    assert (resumed.path / "big.bin").read_bytes() == (plain_files / "big.bin").read_bytes()
    wait_until(lambda: not set(dead) & set(resumed.pids()))
    status = resumed.status()
    assert status["restarts"] == 0
    assert status["counters"]["read_errors"] == 0


def test_a_changed_object_is_still_not_mixed(tmp_path: Path) -> None:
    """A version that is gone is ESTALE for its handle, in the next daemon as well."""
    plain = tmp_path / "plain"
    plain.mkdir()
    size = 64 * MIB  # beginning and end are fetched at once, not what lies between
    (plain / "w.bin").write_bytes(b"a" * size)
    with open_mount(f"file://{plain}", warnings_expected=True) as mounted:
        fd = os.open(mounted.path / "w.bin", os.O_RDONLY)
        assert os.pread(fd, 4096, 0) == b"a" * 4096
        (plain / "new").write_bytes(b"b" * size)
        (plain / "new").rename(plain / "w.bin")
        kill_daemon(mounted)
        with pytest.raises(OSError, match="Stale"):
            os.pread(fd, 4096, size // 2)
        os.close(fd)
        wait_until(lambda: (mounted.path / "w.bin").read_bytes() == b"b" * size)


def test_a_take_over_needs_no_store(tmp_path: Path) -> None:
    """The store is gone while the daemon dies: names that are known answer, reads wait for it."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "w.bin").write_bytes(b"a" * (8 * MIB))
    with open_mount(f"file://{plain}", warnings_expected=True) as mounted:
        fd = os.open(mounted.path / "w.bin", os.O_RDONLY)
        shutil.move(plain, tmp_path / "away")
        kill_daemon(mounted)
        wait_replaced(mounted)
        assert os.fstat(fd).st_size == 8 * MIB
        shutil.move(tmp_path / "away", plain)
        assert os.pread(fd, 4096, 7 * MIB) == b"a" * 4096
        os.close(fd)
