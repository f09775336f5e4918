"""Daemons that hang, that do not come back, and mounts without their keeper."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.mount import kernel
from fusefs.mount.estate import WITHOUT_RESEND, Estate, open_estate
from fusefs.mount.vitals import open_memory
from tests.harness.memory import MARKER, marked_pids
from tests.harness.mounted import ROOT, Mounted, open_mount, wait_ended
from tests.harness.watchdog import tear_down
from tests.mounts.test_changes import wait_until
from tests.recovery.played import (
    BOUND_S,
    kill,
    kill_daemon,
    open_application,
    open_copy,
    replace,
    wait_replaced,
    wait_waiting,
)

ABORTED = {"ENOTCONN", "ECONNABORTED"}


def test_a_daemon_that_hangs_is_replaced(resumed: Mounted, plain_files: Path) -> None:
    """It does not beat for 20 s; then readers get their bytes from the next one."""
    with open_application(resumed, plain_files) as application:
        os.kill(resumed.status()["pids"]["daemon"], signal.SIGSTOP)
        application.do("read read 11", "fault fault 17", "open open w.safetensors")
        assert set(application.results(3).values()) == {"exact"}
    status = resumed.status()
    assert status["restarts"] == 1
    assert status["last_end"] == "hung, and was killed"


def test_a_stopped_keeper_harms_nobody(resumed: Mounted, plain_files: Path) -> None:
    """Readers go on without it; when it goes on, it does not take its own absence for a hang."""
    pids = resumed.status()["pids"]
    os.kill(pids["keeper"], signal.SIGSTOP)
    assert (resumed.path / "big.bin").read_bytes() == (plain_files / "big.bin").read_bytes()
    os.kill(pids["keeper"], signal.SIGCONT)
    assert resumed.status()["pids"]["daemon"] == pids["daemon"]


def test_without_keeper_and_daemon_nothing_stays_that_umount_does_not_clean(
    resumed: Mounted,
) -> None:
    """Then the mount is dead as any FUSE mount without a daemon: ENOTCONN, and umount is enough."""
    pids = resumed.status()["pids"]
    kill(pids["keeper"])
    kill(pids["daemon"])
    wait_ended(resumed.marker)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(resumed.path)
    subprocess.run(["umount", str(resumed.path)], check=True, timeout=BOUND_S)


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_a_mount_can_be_unmounted_while_no_daemon_serves(
    resumed: Mounted, command: list[str]
) -> None:
    """In the pause as at any other time; all processes end, also one that is just taking over."""
    kill(resumed.status()["pids"]["daemon"])
    subprocess.run([*command, str(resumed.path)], check=True, timeout=BOUND_S)
    wait_ended(resumed.marker)


def test_daemons_are_tried_again_until_it_is_hopeless(code: Path, plain_files: Path) -> None:
    """No start that fails is the last one, until none served for the documented time."""
    daemon = code / "fusefs/mount/daemon.py"
    works = daemon.read_text()
    replace(code / "fusefs/policy/restarts.py", "GIVE_UP_S = 120.0", "GIVE_UP_S = 8.0")
    log = code.parent / "log"
    with open_copy(code, plain_files) as mounted, open_application(mounted, plain_files) as reader:
        daemon.write_text("raise SystemExit(3)")
        kill_daemon(mounted)
        reader.do("read read 11")
        wait_until(lambda: log.read_text().count("could not take over") >= 2, BOUND_S)
        daemon.write_text(works)
        assert reader.results(1) == {"read": "exact"}
        daemon.write_text("raise SystemExit(3)")
        kill_daemon(mounted)
        reader.do("read read 23", "fstat list other")
        assert set(reader.results(2).values()) <= ABORTED
        wait_until(lambda: not mounted.is_mounted(), BOUND_S)
        wait_ended(mounted.marker)
        assert "no daemon served for 8 s; giving up" in log.read_text()


def test_an_estate_is_served_by_whoever_adopts_it(plain_files: Path, tmp_path: Path) -> None:
    """One that mounted lends it to a keeper; when that ends, requests wait for the next."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    marker = f"adopted-{os.getpid()}"
    estate = open_estate("lent", str(mountpoint), False, open_memory())
    try:
        with adopted(estate, plain_files, mountpoint, marker):
            assert _begin(mountpoint, "w.safetensors") == _begin(plain_files, "w.safetensors")
            fd = os.open(mountpoint / "big.bin", os.O_RDONLY)
        assert not marked_pids(marker)
        assert kernel.is_connected(estate.fuse_fd)
        with adopted(estate, plain_files, mountpoint, marker):
            assert os.pread(fd, 9, 0) == _begin(plain_files, "big.bin")
            os.close(fd)
        assert kernel.find_mount(str(mountpoint)) is not None
    finally:
        kernel.unmount(str(mountpoint), lazy=True)
        estate.close()
        tear_down(mountpoint, marker)


def _begin(directory: Path, name: str) -> bytes:
    return (directory / name).read_bytes()[:9]


def _write_job(job_fd: int, plain: Path, mountpoint: Path) -> None:
    job = {
        "source": f"file://{plain}",
        "mountpoint": str(mountpoint),
        "config": Config().to_json_dict(),
        "foreground": False,
    }
    os.pwrite(job_fd, json.dumps(job).encode(), 0)


@contextmanager
def adopted(estate: Estate, plain: Path, mountpoint: Path, marker: str) -> Iterator[None]:
    """A keeper that was lent this estate; it is asked to end with SIGTERM."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    job_fd = os.memfd_create("job")
    _write_job(job_fd, plain, mountpoint)
    report_end, keepers_end = os.pipe()
    fds = theirs.fileno(), job_fd, keepers_end
    with ours, theirs:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "fusefs.mount.keeper", "--adopt", *map(str, fds)],
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARKER: marker},
        )
        estate.send(ours)
    os.close(keepers_end)
    os.close(job_fd)
    with open(report_end) as report:
        assert json.loads(report.read()) == {"ok": True, "pid": keeper.pid}
    try:
        yield
    finally:
        keeper.terminate()
        assert keeper.wait(BOUND_S) == 0


# -- kernels before 6.9 ---------------------------------------------------------------------------


@pytest.fixture
def old(plain_files: Path) -> Iterator[Mounted]:
    """A mount that behaves as if the kernel could not send requests again."""
    with open_mount(
        f"file://{plain_files}", environment={WITHOUT_RESEND: "1"}, warnings_expected=True
    ) as mounted:
        yield mounted


def test_an_old_kernel_loses_nothing_that_was_not_in_hand(old: Mounted, plain_files: Path) -> None:
    """An idle daemon dies, and what is asked in the pause is answered."""
    with open_application(old, plain_files) as application:
        kill_daemon(old)
        application.do("read read 11", "fault fault 17", "list list many")
        assert set(application.results(3).values()) == {"exact"}
        wait_replaced(old)


def test_an_old_kernel_loses_nothing_in_an_upgrade(old: Mounted, plain_files: Path) -> None:
    """The daemon that leaves answers what it has in hand."""
    pids = old.status()["pids"]
    with open_application(old, plain_files) as application:
        for worker in pids["workers"]:
            os.kill(worker, signal.SIGSTOP)
        application.do("read read 11", "fault fault 17")
        wait_waiting(old, 2)
        os.kill(pids["keeper"], signal.SIGUSR1)
        for worker in pids["workers"]:
            os.kill(worker, signal.SIGCONT)
        assert set(application.results(2).values()) == {"exact"}
        wait_until(lambda: old.status()["upgrades"]["done"] == 1, BOUND_S)


def test_an_old_kernel_ends_a_mount_whose_requests_were_lost(
    old: Mounted, plain_files: Path
) -> None:
    """They can never be answered: an error for all rather than a hang for some."""
    pids = old.status()["pids"]
    with open_application(old, plain_files) as application:
        for worker in pids["workers"]:
            os.kill(worker, signal.SIGSTOP)
        application.do("read read 11", "read2 direct 17")
        wait_waiting(old, 2)
        kill(pids["daemon"])
        assert set(application.results(2).values()) <= ABORTED
    wait_until(lambda: not old.is_mounted(), BOUND_S)
    wait_ended(old.marker)
