"""Where something runs out: loads finish, or one sentence refuses; and nothing stays behind.

`open_mount` asserts the last: every process of the mount has ended and the mountpoint is free.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commandline import run_fusefs
from tests.harness.cgroup import open_cgroup, open_pids_cgroup
from tests.harness.mounted import ROOT, Mounted, MountFailed, open_mount
from tests.harness.weed import Weed
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
SIZE = 24 * MIB + 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file that is a load's worth of blocks."""
    directory = tmp_path_factory.mktemp("exhaustion")
    (directory / "w.bin").write_bytes(random.Random(31).randbytes(SIZE))
    return directory


def assert_loads(mounted: Mounted, folder: Path) -> None:
    """Every byte, read and mapped."""
    want = (folder / "w.bin").read_bytes()
    with (mounted.path / "w.bin").open("rb") as file:
        assert file.read() == want
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == want


def refusal(folder: Path, *prefix: str) -> str:
    """The one sentence with which `fusefs mount` refuses."""
    with (
        pytest.raises(MountFailed) as refused,
        open_mount(f"file://{folder}", prefix_command=prefix),
    ):
        pass
    assert refused.value.status == 1
    assert refused.value.stderr.startswith("fusefs: ")
    assert refused.value.stderr.count("\n") == 1
    return refused.value.stderr


# Open files


def test_too_few_open_files_refuse_the_mount(folder: Path) -> None:
    """It is said at once, with how many it takes and where the limit is set."""
    said = refusal(folder, "prlimit", "--nofile=64:64")
    assert "may have 64 files open here, and a mount needs 128" in said
    assert "ulimit -n" in said


def test_the_soft_limit_of_open_files_is_raised(folder: Path) -> None:
    """Shells start with little and allow more: that is taken without a word."""
    prefix = ["prlimit", "--nofile=64:4096"]
    with open_mount(f"file://{folder}", prefix_command=prefix) as mounted:
        assert_loads(mounted, folder)
        daemon = mounted.status()["pids"]["daemon"]
        limits = Path(f"/proc/{daemon}/limits").read_text()
        assert limits.partition("Max open files")[2].split()[0] == "4096"


def test_few_open_files_mean_few_connections(weed: Weed, bucket: str, folder: Path) -> None:
    """A load finishes with what the limit leaves, and says how many connections that are."""
    weed.client().upload_file(str(folder / "w.bin"), bucket, "w.bin")
    with open_mount(
        f"s3://{bucket}",
        "--set",
        "engine.workers=2",
        environment=weed.environment,
        prefix_command=["prlimit", "--nofile=128:128"],
    ) as mounted:
        assert_loads(mounted, folder)
        assert mounted.status()["fetching"]["limit_max"] == 2 * (128 - 48)


def test_a_daemon_without_a_descriptor_left_serves_and_recovers(folder: Path) -> None:
    """Workers that die then are replaced once there are descriptors again; readers only wait."""
    with open_mount(f"file://{folder}", warnings_expected=True) as mounted:
        wait_until(lambda: mounted.status()["pids"]["pusher"] > 0)
        pids = mounted.status()["pids"]
        used = max(int(name) for name in os.listdir(f"/proc/{pids['daemon']}/fd")) + 1
        _limit_open_files(pids["daemon"], 3)
        for pid in [*pids["workers"], pids["pusher"]]:
            os.kill(pid, 9)
        wait_until(lambda: "Too many open files" in str(mounted.status()["warnings"]))
        assert not set(mounted.status()["pids"]["workers"]) - set(pids["workers"])
        _limit_open_files(pids["daemon"], used + 100)
        assert_loads(mounted, folder)
        assert mounted.counters()["workers_replaced"] == len(pids["workers"])


def _limit_open_files(pid: int, limit: int) -> None:
    subprocess.run(["prlimit", "--pid", str(pid), f"--nofile={limit}:"], check=True)


# Processes


def test_a_limit_of_processes_refuses_or_serves(folder: Path) -> None:
    """Whatever the start runs into is one sentence; with a few more, a load finishes."""
    outcomes = []
    for most in (3, 5, 7, 8, 12):
        with open_pids_cgroup(most) as cgroup:
            prefix = cgroup.prefix_command
            try:
                with open_mount(
                    f"file://{folder}", prefix_command=prefix, warnings_expected=True
                ) as mounted:
                    assert_loads(mounted, folder)
                    outcomes.append("loads")
            except MountFailed as refused:
                outcomes.append(refused.stderr)
    refusals = [outcome for outcome in outcomes if outcome != "loads"]
    assert outcomes[0] != "loads"
    assert outcomes == [*refusals, *["loads"] * (len(outcomes) - len(refusals))]
    assert outcomes[-1] == "loads"
    for said in refusals:
        assert said.startswith("fusefs: cannot start the mount's processes: ")
        assert "pids.max" in said
        assert said.count("\n") == 1


# Places to write to


_WITHOUT = """
# A /dev of our own, with what every program may count on, and no shm.
mount -t tmpfs -o size=64k tmpfs /mnt
for node in null zero full random urandom fuse; do
    touch "/mnt/$node"
    mount --bind "/dev/$node" "/mnt/$node"
done
ln -s /proc/self/fd /mnt/fd
mount --rbind /mnt /dev
for folder in /tmp /var/tmp; do
    mount --bind "$folder" "$folder"
    mount -o remount,ro,bind "$folder"
done
unset HOME
if test -e /dev/shm || touch "/tmp/fusefs-test-$$" 2> /dev/null; then exit 9; fi
exec "$@"
"""


def test_nothing_is_written_anywhere(weed: Weed, bucket: str, folder: Path) -> None:
    """Without /dev/shm and HOME, and with a /tmp that is read-only, it mounts and loads."""
    weed.client().upload_file(str(folder / "w.bin"), bucket, "w.bin")
    prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-euc", _WITHOUT, "sh"]
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.mounts.inside", f"s3://{bucket}", str(folder)],
        cwd=ROOT,
        env={**os.environ, **weed.environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("exact\n")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        (disk / "log").touch()
        with (
            (disk / "rest").open("wb", 0) as rest,
            pytest.raises(OSError, match="No space left"),
        ):
            os.posix_fallocate(rest.fileno(), 0, MIB)
        (disk / "rest").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_the_log_and_nothing_else(folder: Path, full_disk: Path) -> None:
    """What cannot be written down is still in the status; doctor says why the log is silent."""
    log = full_disk / "log"
    options = ("--set", f"log.file={log}", "--set", "log.level=debug")
    with open_mount(f"file://{folder}", *options, warnings_expected=True) as mounted:
        os.kill(mounted.status()["pids"]["workers"][0], 9)
        wait_until(lambda: mounted.counters()["workers_replaced"] == 1)
        assert_loads(mounted, folder)
        assert any("died" in line for line in mounted.status()["warnings"])
        told = mounted.run_cli("doctor", str(mounted.path))
        assert told.returncode == 0
        assert f"the disk of the log {log} is full" in told.stdout


def test_a_transfer_onto_a_full_disk_is_one_sentence(folder: Path, full_disk: Path) -> None:
    """`fusefs pull` does not even begin; `fusefs push` to a folder stops, and goes on with room."""
    refused = run_fusefs("pull", f"file://{folder}", full_disk / "out")
    assert refused.status == 1
    assert "has room for 0 bytes" in refused.sentence
    stopped = run_fusefs("push", folder, f"file://{full_disk}/pushed")
    assert stopped.status == 1
    assert "No space left on device" in stopped.sentence
    (full_disk / "rest").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(full_disk)], check=True)
    assert run_fusefs("push", folder, f"file://{full_disk}/pushed").status == 0
    assert (full_disk / "pushed/w.bin").read_bytes() == (folder / "w.bin").read_bytes()


def test_a_log_that_cannot_be_opened_refuses_the_mount(folder: Path, tmp_path: Path) -> None:
    """One sentence with the file's name, not a traceback nobody sees."""
    with (
        pytest.raises(MountFailed) as refused,
        open_mount(f"file://{folder}", "--set", f"log.file={tmp_path}/absent/log"),
    ):
        pass
    assert refused.value.status == 2
    assert f"{tmp_path}/absent/log" in refused.value.stderr
    assert refused.value.stderr.count("\n") == 1


def test_without_huge_pages_it_loads(folder: Path) -> None:
    """They save time, and are not needed."""
    disable = "import ctypes, os, sys; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0); "
    disable += "os.execvp(sys.argv[1], sys.argv[1:])"  # PR_SET_THP_DISABLE: children inherit it
    prefix = [sys.executable, "-S", "-c", disable]
    with open_mount(f"file://{folder}", prefix_command=prefix) as mounted:
        for pid in mounted.status()["pids"]["workers"]:
            status = Path(f"/proc/{pid}/status").read_text()
            assert status.partition("THP_enabled:")[2].split()[0] == "0"
        assert_loads(mounted, folder)


# Memory

LIMIT = 512 * MIB
LOAD_BYTES = 2200 * MIB
_STAMP = 16
"""Bytes at the begin of each MiB that say which it is; what follows is the same everywhere."""

_READ = """
import mmap, os, sys
path, how, size, rest = sys.argv[1], sys.argv[2], int(sys.argv[3]), None
MIB = 1 << 20
file = open(path, "rb", buffering=0)
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if how == "mmap" else None
for number in range(size // MIB):
    at = number * MIB
    piece = mapped[at : at + MIB] if mapped else os.pread(file.fileno(), MIB, at)
    rest = rest or piece[16:]
    if len(piece) != MIB or piece[:16] != b"%016d" % number or piece[16:] != rest:
        sys.exit(f"wrong bytes in MiB {number}")
"""


def test_two_gigabytes_load_inside_half_a_gigabyte(tmp_path: Path) -> None:
    """With default settings, read from outside and mapped from inside: exact, and nobody killed."""
    rest = random.Random(37).randbytes(MIB - _STAMP)
    with (tmp_path / "w.safetensors").open("wb") as file:
        for number in range(LOAD_BYTES // MIB):
            file.write(b"%016d" % number + rest)
    with (
        open_cgroup(LIMIT) as cgroup,
        open_mount(
            f"file://{tmp_path}", prefix_command=cgroup.prefix_command, warnings_expected=True
        ) as mounted,
    ):
        command = [sys.executable, "-S", "-c", _READ, str(mounted.path / "w.safetensors")]
        for how, prefix in (("read", []), ("mmap", cgroup.prefix_command)):
            arguments = [*prefix, *command, how, str(LOAD_BYTES)]
            done = subprocess.run(arguments, capture_output=True, timeout=120, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
        assert cgroup.killed() == 0
        assert cgroup.used_bytes() <= LIMIT
        assert mounted.status()["memory_limit_bytes"] == LIMIT // 4
        assert mounted.counters()["read_errors"] == 0
