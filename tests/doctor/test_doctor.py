"""Sick mounts made on purpose, and `fusefs doctor` on each: in bounded time, whatever hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusefs.mount import kernel
from tests.cli.commandline import run_fusefs
from tests.cli.unanswered import open_unanswered
from tests.harness.mounted import ROOT, Mounted, cli_command, open_mount
from tests.harness.weed import Weed, choose_ports
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
ANSWER_MAX_S = 40.0
"""The doctor's own bound is 15 s; the rest is a busy machine starting Pythons."""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A mount of a folder with one file."""
    (tmp_path / "w.bin").write_bytes(os.urandom(3 * MIB))
    with open_mount(f"file://{tmp_path}", "--memory", "32M", warnings_expected=True) as mount:
        wait_until(lambda: mount.status()["pids"]["pusher"] > 0)
        yield mount


def doctor(path: Path, *prefix: str, status: int = 1) -> dict[str, Any]:
    """What `fusefs doctor --json` says of it."""
    began = time.monotonic()
    ended = run_fusefs("doctor", path, "--json", prefix=prefix)
    assert time.monotonic() - began < ANSWER_MAX_S
    assert (ended.status, ended.stderr) == (status, "")
    said: dict[str, Any] = json.loads(ended.stdout)
    assert said["well"] is (status == 0)
    return said


def names(said: dict[str, Any]) -> list[str]:
    """The names of the findings, in order."""
    return [finding["name"] for finding in said["findings"]]


@contextlib.contextmanager
def open_stopped(pid: int) -> Iterator[None]:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_mount_that_is_well_serves(mounted: Mounted) -> None:
    """No finding; every process is found without asking the daemon; so are the users."""
    with (mounted.path / "w.bin").open("rb") as file:
        file.read(1)
        said = doctor(mounted.path, status=0)
    assert said["findings"] == []
    evidence = said["evidence"]
    assert sorted(each["pid"] for each in evidence["processes"]) == mounted.pids()
    users = {user["pid"]: user["how"] for user in evidence["users"]}
    assert users[os.getpid()] == "open file"
    assert evidence["store"]["error"] is None
    shown = run_fusefs("doctor", mounted.path)
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"{mounted.path}: serves\n  nothing is wrong\n")


def test_who_uses_it_is_found_by_folder_and_mapping(mounted: Mounted) -> None:
    """A working directory and a mapping without an open file hold a mount as well."""
    mapped = (
        "import mmap, sys; file = open(sys.argv[1], 'rb');"
        " kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); file.close();"
        " print('ready', flush=True); sys.stdin.read()"
    )
    mapper = subprocess.Popen(
        [sys.executable, "-S", "-c", mapped, str(mounted.path / "w.bin")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    dweller = subprocess.Popen(["cat"], cwd=mounted.path, stdin=subprocess.PIPE)
    try:
        assert mapper.stdout is not None
        assert mapper.stdout.readline() == b"ready\n"
        said = doctor(mounted.path, status=0)
    finally:
        mapper.communicate()
        dweller.communicate()
    users = {user["pid"]: user["how"] for user in said["evidence"]["users"]}
    # CPython's mmap keeps a copy of the descriptor: that counts first.
    assert users[mapper.pid] in ("open file", "mapped file")
    assert users[dweller.pid] == "working directory"


def test_a_stopped_daemon_is_found_while_readers_hang(mounted: Mounted) -> None:
    """With a reader that waits in the kernel; and going on heals it, as the finding says."""
    pids = mounted.status()["pids"]
    read = "import sys; open(sys.argv[1], 'rb').read()"
    with open_stopped(pids["daemon"]):
        reader = subprocess.Popen([sys.executable, "-S", "-c", read, str(mounted.path / "w.bin")])
        wait_until(lambda: _waiting(mounted) > 0)
        said = doctor(mounted.path)
    assert reader.wait(30) == 0
    assert names(said)[0] == "daemon-stopped"
    assert f"kill -CONT {pids['daemon']}" in said["findings"][0]["sentence"]
    assert said["evidence"]["connection"]["waiting"] > 0
    assert names(doctor(mounted.path, status=0)) == []


def _waiting(mounted: Mounted) -> int:
    row = kernel.find_mount(str(mounted.path))
    assert row is not None
    minor = row.device.partition(":")[2]
    return int(Path(f"/sys/fs/fuse/connections/{minor}/waiting").read_text())


def test_a_stopped_worker_is_found(mounted: Mounted) -> None:
    """The daemon answers, and yet reads would wait."""
    worker = mounted.status()["pids"]["workers"][0]
    with open_stopped(worker):
        said = doctor(mounted.path)
    assert names(said) == ["process-stopped"]
    assert f"worker with pid {worker}" in said["findings"][0]["sentence"]


def test_few_descriptors_are_found(mounted: Mounted) -> None:
    """A limit that is nearly reached, told before it is."""
    daemon = mounted.status()["pids"]["daemon"]
    used = len(os.listdir(f"/proc/{daemon}/fd"))
    subprocess.run(["prlimit", "--pid", str(daemon), f"--nofile={used + 1}:"], check=True)
    said = doctor(mounted.path)
    assert names(said)[0] == "descriptors"
    assert f"--pid {daemon}" in said["findings"][0]["sentence"]


def test_a_readahead_set_back_is_weak_and_serves(mounted: Mounted) -> None:
    """Whoever set it: the figure of now is told, not that of the start."""
    row = kernel.find_mount(str(mounted.path))
    assert row is not None
    Path(f"/sys/class/bdi/{row.device}/read_ahead_kb").write_text("128")
    said = doctor(mounted.path, status=0)
    assert names(said) == ["read-ahead-kb"]
    assert said["findings"][0]["severity"] == "weak"


_FULL = """
mount -t tmpfs -o size=1m tmpfs /dev/shm
head -c 1048576 /dev/zero > /dev/shm/left
exec "$@"
"""


def test_a_full_shared_memory_is_weak(mounted: Mounted) -> None:
    """Seen from where the doctor runs; fusefs does not need it."""
    said = doctor(mounted.path, "unshare", "--mount", "sh", "-euc", _FULL, "sh", status=0)
    assert names(said) == ["shared-memory"]


def test_a_daemon_that_died_but_is_held_is_found(tmp_path: Path) -> None:
    """Nobody reads the requests, and the descriptor is still open: readers hang."""
    with open_unanswered(tmp_path) as mount:
        said = doctor(tmp_path)
        assert names(said)[0] == "daemon-gone"
        assert f"fusefs umount -l {tmp_path}" in said["findings"][0]["sentence"]
        mount.die()
        said = doctor(tmp_path)
        assert names(said) == ["dead"]
        assert f"fusefs umount -l {tmp_path}" in said["findings"][0]["sentence"]


def test_nothing_or_something_else_mounted_is_told(tmp_path: Path) -> None:
    """No guesses about what is not ours."""
    assert names(doctor(tmp_path)) == ["not-mounted"]
    assert names(doctor(tmp_path / "absent")) == ["not-mounted"]
    said = doctor(Path("/proc"))
    assert names(said) == ["not-ours"]
    assert "proc" in said["findings"][0]["sentence"]


def test_a_detached_mount_is_found_by_its_processes(mounted: Mounted) -> None:
    """After a lazy unmount with a file open: what is left, and that it ends with its user."""
    with (mounted.path / "w.bin").open("rb") as file:
        file.read(1)
        pids = mounted.pids()
        kernel.unmount(str(mounted.path), lazy=True)
        wait_until(lambda: not mounted.is_mounted())
        said = doctor(mounted.path)
        assert names(said) == ["not-mounted"]
        assert {each["pid"] for each in said["evidence"]["processes"]} <= set(pids)
        assert "still has the processes" in said["findings"][0]["sentence"]


def test_a_mount_held_by_another_namespace_is_told(mounted: Mounted) -> None:
    """A container that was started meanwhile has a copy, which keeps the mount alive."""
    command = ["unshare", "--mount", "sh", "-c", "echo ready; exec cat"]
    container = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        kernel.unmount(str(mounted.path))
        said = doctor(mounted.path)
    finally:
        container.communicate()
    assert names(said) == ["not-mounted"]
    users = {user["pid"]: user["how"] for user in said["evidence"]["users"]}
    assert users[container.pid] == "mount namespace"
    assert f"{container.pid} (mount namespace)" in said["findings"][0]["sentence"]


def test_a_store_that_is_gone_is_found(weed: Weed, bucket: str) -> None:
    """Asked with the mount's own settings: the caller's environment knows nothing of them."""
    weed.client().put_object(Bucket=bucket, Key="w", Body=b"x")
    [port] = choose_ports(1)
    relay = subprocess.Popen(
        [sys.executable, "-S", "-c", _RELAY, str(port), weed.endpoint.rpartition(":")[2]],
        stdout=subprocess.PIPE,
    )
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == b"ready\n"
        environment = {**weed.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        with open_mount(f"s3://{bucket}", environment=environment, warnings_expected=True) as mount:
            assert names(doctor(mount.path, status=0)) == []
            relay.kill()
            relay.wait()
            said = doctor(mount.path)
            assert names(said)[0] == "store"
            assert weed.environment["AWS_SECRET_ACCESS_KEY"] not in json.dumps(said)
    finally:
        relay.kill()
        relay.communicate()


_OF_A_USER = """
# A device node as udev makes it: usable by everyone. In a mount namespace of our own.
mknod "$HOME/fuse" c 10 229; chmod 666 "$HOME/fuse"; mount --bind "$HOME/fuse" /dev/fuse
user="setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps +dac_read_search
    --ambient-caps +dac_read_search"
$user "$@" mount "file://$HOME/source" "$HOME/mnt"
chmod 700 "$HOME/source"; chown 0:0 "$HOME/source"
"$@" doctor "$HOME/mnt" --json || true
$user "$@" umount "$HOME/mnt"
"""


def test_root_asks_the_store_with_the_rights_of_the_mounts_user() -> None:
    """Nothing that a user's environment says (a library, a program) is done as root.

    Root may read the folder and the user may not: who is refused, or cannot even run this Python
    since it lies in root's home, is not root.
    """
    with tempfile.TemporaryDirectory() as home:
        for folder in (home, f"{home}/source", f"{home}/mnt"):
            Path(folder).mkdir(exist_ok=True)
            os.chown(folder, 1000, 1000)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-euc", _OF_A_USER, "sh", *cli_command()],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": home,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)["evidence"]
    assert {each["uid"] for each in evidence["processes"]} == {1000}
    store = evidence["store"]
    assert store is None or "cannot be read" in store["error"] or "denied" in store["error"]


_RELAY = """
import socket, sys, threading
def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    one, _ = listener.accept()
    two = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((one, two), (two, one)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def test_another_user_is_told_to_ask_as_root(mounted: Mounted) -> None:
    """What may not be seen is not made up: neither a sick store nor a missing daemon.

    The user has one capability, to read files anywhere: the interpreter may lie in root's home.
    """
    prefix = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
    prefix += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    said = doctor(mounted.path, *prefix)
    assert names(said) == ["no-statistics", "no-sight"]
    assert "as root" in said["findings"][0]["sentence"]
    assert said["evidence"]["store"] is None
