"""However a mount ends, nothing of it stays; and it works without root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, Mounted, cli_command, open_mount, wait_ended
from tests.mounts.test_changes import wait_until


def run(*command: str) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True, capture_output=True, timeout=30)


ENDINGS: dict[str, Callable[[Mounted], object]] = {
    "umount": lambda mount: run("umount", str(mount.path)),
    "fusermount3 -u": lambda mount: run("fusermount3", "-u", str(mount.path)),
    "SIGTERM to the keeper": lambda m: os.kill(m.status()["pids"]["keeper"], signal.SIGTERM),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_way_to_end_a_mount_ends_all_of_it(plain: Path, ending: str) -> None:
    """No mount, no process and no stale mountpoint is left behind."""
    with open_mount(f"file://{plain}") as mounted:
        assert (mounted.path / "one").read_bytes() == (plain / "one").read_bytes()
        ENDINGS[ending](mounted)
        wait_until(lambda: not mounted.is_mounted())
        wait_ended(mounted.marker)
        assert list(mounted.path.iterdir()) == []


def test_without_its_keeper_a_mount_goes_on_and_can_be_ended(plain: Path) -> None:
    """SIGKILL of the keeper changes nothing for readers, and umount still ends every process."""
    with open_mount(f"file://{plain}") as mounted:
        os.kill(mounted.status()["pids"]["keeper"], signal.SIGKILL)
        assert (mounted.path / "big.bin").read_bytes() == (plain / "big.bin").read_bytes()


UNPRIVILEGED = """
set -eu
# A device node as udev makes it: usable by everyone. In a mount namespace of our own.
mknod "$1/fuse" c 10 229; chmod 666 "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps +dac_read_search \
    --ambient-caps +dac_read_search sh -c '
        set -eu
        "$@" mount "file://$PLAIN" "$MOUNTPOINT"
        "$1" -c "$COMPARE_MAPPED" "$MOUNTPOINT/big.bin" "$PLAIN/big.bin"
        "$1" -c "$ASK" "$MOUNTPOINT"
        "$@" status "$MOUNTPOINT" --json
        "$1" -c "$KILL" "$MOUNTPOINT"
        cmp "$MOUNTPOINT/big.bin" "$PLAIN/big.bin"
        "$@" status "$MOUNTPOINT" --json
        "$@" umount "$MOUNTPOINT"
        ! grep -q "$MOUNTPOINT" /proc/self/mountinfo
    ' "$@"
"""


ASK = """
import json, os, sys
answer = json.loads(os.getxattr(sys.argv[1], "user.fusefs.socket"))
assert answer["socket"] is None and "root" in answer["why"], answer
assert not os.path.exists(sys.argv[1] + "/.fusefs/socket")
assert json.loads(os.getxattr(sys.argv[1] + "/big.bin", "user.fusefs.prefetch"))["planned"]
pids = json.loads(os.getxattr(sys.argv[1], "user.fusefs.stats"))["pids"]
for pid in (pids["daemon"], pids["spawner"], *pids["workers"]):
    state = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status"))
    assert (int(state["CapPrm"], 16) & ~4, int(state["NoNewPrivs"])) == (0, 1), state
    assert int(state["Seccomp"]) == 2, state
    try:
        open(f"/proc/{pid}/environ")
    except PermissionError:
        continue
    raise AssertionError("another process of this user reads the environment")
"""


KILL = """
import json, os, signal, sys
os.kill(json.loads(os.getxattr(sys.argv[1], "user.fusefs.stats"))["pids"]["daemon"], signal.SIGKILL)
"""


COMPARE_MAPPED = """
import mmap, sys
files = [open(path, "rb") for path in sys.argv[1:]]
ours, theirs = (mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) for file in files)
sys.exit(ours[:] != theirs[:])
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of user 1000, where fusermount3 can go as that user (pytest's own is root's)."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 1000, 1000)
        yield Path(name)


def test_an_ordinary_user_can_mount_read_and_unmount(plain: Path, home: Path) -> None:
    """Through fusermount3, without root: right bytes, mapped too; status says what was not set.

    Nobody can bind the hints' socket there, which is said; the verbs work. The processes are closed
    to the user's other ones, and confined. And it outlives its daemon.

    The user has one capability, to read files anywhere: the interpreter may lie in root's home.
    """
    mountpoint = home / "mnt"
    mountpoint.mkdir()
    os.chown(mountpoint, 1000, 1000)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "PLAIN": str(plain),
        "MOUNTPOINT": str(mountpoint),
        "COMPARE_MAPPED": COMPARE_MAPPED,
        "ASK": ASK,
        "KILL": KILL,
    }
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", UNPRIVILEGED, "sh", str(home), *cli_command()],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout[done.stdout.index("{") :]
    status, end = json.JSONDecoder().raw_decode(said)  # before the daemon was killed
    assert status["restarts"] == 0
    assert json.loads(said[end:])["restarts"] == 1
    counters = status["counters"]
    # What was pushed is read without a READ, but for the pages that a READ brought first.
    assert counters["bytes_read"] + counters["bytes_pushed"] >= (plain / "big.bin").stat().st_size
    assert counters["bytes_pushed"] > 0
    knob = status["kernel"]["read_ahead_kb"]
    assert not knob["set"]
    assert "Permission denied" in knob["why"]


def test_secrets_appear_nowhere(weed_environment: object, model_bucket: str) -> None:
    """Credentials are in no argument list and not in the status."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    with open_mount(f"s3://{model_bucket}") as mounted:
        assert secret not in json.dumps(mounted.status())
        pids = mounted.pids()
        assert len(pids) >= 5
        for pid in pids:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            assert secret.encode() not in arguments
            assert sys.executable.encode() == arguments[0]
