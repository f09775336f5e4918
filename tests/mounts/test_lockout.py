"""Who is kept out, what is hidden, and the one way to deceive: sentences of docs/semantics.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, cli_command, open_mount
from tests.harness.weed import Weed

MIB = 1 << 20
USER = 1000
AS_USER = """
set -e
# As udev makes it: usable by everyone. In a mount namespace of our own. The user's one capability
# is for the interpreter, which may lie in root's home.
mknod "$HOME/fuse" c 10 229; chmod 666 "$HOME/fuse"; mount --bind "$HOME/fuse" /dev/fuse
exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps +dac_read_search \
    --ambient-caps +dac_read_search sh -ec '
        "$@" mount "file://$PLAIN" "$MOUNTPOINT"
        cat "$MOUNTPOINT/one" > /dev/null && echo user
        echo ready; read go
        "$@" umount "$MOUNTPOINT"
    ' sh "$@"
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of another user, where fusermount3 can go as that user."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "mnt").mkdir()
        for path in (Path(name), Path(name) / "mnt"):
            os.chown(path, USER, USER)
        yield Path(name)


def test_root_is_locked_out_of_a_users_mount(plain: Path, home: Path) -> None:
    """What an ordinary user mounts is closed to root and to everybody else."""
    mountpoint = home / "mnt"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "PLAIN": str(plain),
        "MOUNTPOINT": str(mountpoint),
    }
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", AS_USER, "sh", *cli_command()],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "user\n", process.communicate(timeout=60)[1]
        assert process.stdout.readline() == "ready\n"
        # In its mount namespace, as root and as a stranger.
        enter = ["nsenter", "--mount", "--target", str(process.pid)]
        for who in ([], ["setpriv", "--reuid", "9999", "--clear-groups"]):
            done = subprocess.run(
                [*enter, *who, "cat", str(mountpoint / "one")],
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert b"Permission denied" in done.stderr
            assert done.stdout == b""
        _, said = process.communicate("go\n", timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def test_a_key_called_as_our_folder_is_hidden(weed: Weed, bucket: str) -> None:
    """Whatever a bucket has below `.fusefs` is neither listed nor found; the socket is there."""
    client = weed.client()
    for key in (".fusefs", ".fusefs/socket", ".fusefs/secret", "sub/.fusefs/x", "sub/shown"):
        client.put_object(Bucket=bucket, Key=key, Body=b"theirs")
    with open_mount(f"s3://{bucket}", environment=weed.environment) as mounted:
        assert os.listdir(mounted.path) == ["sub"]
        assert os.listdir(mounted.path / "sub") == ["shown"]
        assert (mounted.path / ".fusefs" / "socket").is_socket()
        for name in (".fusefs/secret", "sub/.fusefs/x"):
            assert not (mounted.path / name).exists()
        answer = json.loads(os.getxattr(mounted.path, "user.fusefs.socket"))
        assert answer["socket"] == ".fusefs/socket"


def test_restored_times_deceive(tmp_path: Path) -> None:
    """A file rewritten in place, with size and times restored, counts as the same version."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * MIB)
    before = file.stat()
    options = ("--set", "tree.ttl_s=0")
    with open_mount(f"file://{tmp_path}", *options) as mounted:
        number = (mounted.path / "file").stat().st_ino
        with file.open("r+b") as writer:
            writer.write(b"b" * MIB)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (mounted.path / "file").stat().st_ino == number


def test_a_mount_leaves_no_file_of_its_own(plain: Path) -> None:
    """No process of a mount has a file open for writing, nor a socket with a path outside of it."""
    with open_mount(f"file://{plain}") as mounted:
        assert (mounted.path / "one").read_bytes() == (plain / "one").read_bytes()
        inodes = set()
        for pid in mounted.pids():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                name = str(fd.readlink())
                if name.startswith("socket:"):
                    inodes.add(name[len("socket:[") : -1])
                elif name.startswith("/") and not name.endswith(" (deleted)"):
                    flags = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split("flags:")[1]
                    writes = int(flags.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY
                    assert not writes or name.startswith("/dev/"), name
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        paths = [row[7] for row in rows if len(row) > 7 and row[6] in inodes]
        assert len(inodes) > len(paths)
        # Bound by the descriptor of its folder in the mount.
        within = re.compile(r"/proc/self/fd/[0-9]+/socket")
        assert [path for path in paths if not within.fullmatch(path)] == []
