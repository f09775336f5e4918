"""The socket inside the mount: where it is found, by whom, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, Mounted, open_mount, wait_ended
from tests.hints.client import connect, inode


def find(mounted: Mounted) -> dict[str, object]:
    answer: dict[str, object] = json.loads(os.getxattr(mounted.path, "user.fusefs.socket"))
    return answer


def test_it_answers_in_every_directory_and_is_listed_in_none(mounted: Mounted) -> None:
    """One socket, by whichever directory; no listing shows it, and nothing else is below it."""
    assert find(mounted) == {"v": 1, "socket": ".fusefs/socket", "why": None}
    for directory in (mounted.path, mounted.path / "sub"):
        node = (directory / ".fusefs" / "socket").stat()
        assert stat.S_ISSOCK(node.st_mode)
        assert node.st_ino == (mounted.path / ".fusefs" / "socket").stat().st_ino
        assert ".fusefs" not in os.listdir(directory)
        assert os.listdir(directory / ".fusefs") == []
        assert not (directory / ".fusefs" / "other").exists()
        with connect(directory) as client:
            assert client.ask("stats")["mountpoint"] == str(mounted.path)
    assert (mounted.path / ".fusefs").stat().st_ino != (mounted.path / "sub/.fusefs").stat().st_ino


def test_the_mount_is_read_only_all_the_same(mounted: Mounted) -> None:
    """Neither sockets nor files can be made, not even below the folder."""
    flags = os.statvfs(mounted.path).f_flag
    assert flags & os.ST_RDONLY
    for place in (mounted.path / "new", mounted.path / ".fusefs" / "new"):
        with socket.socket(socket.AF_UNIX) as other, pytest.raises(OSError, match="Read-only"):
            other.bind(str(place))
        with pytest.raises(OSError, match="Read-only file system"):
            place.write_bytes(b"")
    with pytest.raises(OSError, match="Read-only file system"):
        (mounted.path / ".fusefs" / "socket").unlink()


CLIENT = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from tests.hints.client import connect, inode
    directory, name = Path(sys.argv[1]), sys.argv[2]
    with connect(directory) as client, open(directory / name, "rb") as file:
        client.ask("plan", plan="p", files=[{"inode": os.fstat(file.fileno()).st_ino}])
        client.ask("subscribe", plan="p")
        client.event("done")
        assert client.refused("plan", plan="q", files=[{"inode": int(sys.argv[3])}]) == sys.argv[4]
    print("done", os.getuid())
""")


def in_a_container(mounted: Mounted, below: str, name: str, other: int, code: str, uid: int) -> str:
    """Run CLIENT with nothing but a read-only bind of a part of the mount: its own namespaces."""
    script = (
        'mount -t tmpfs none /mnt && mkdir /mnt/m && mount --bind "$1" /mnt/m '
        '&& mount -o remount,bind,ro /mnt/m && umount -l "$2" && shift 2 && exec '
        f"setpriv --reuid {uid} --clear-groups --inh-caps +dac_read_search "
        '--ambient-caps +dac_read_search "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", script, "sh",
         str(mounted.path / below), str(mounted.path),
         sys.executable, "-c", CLIENT, "/mnt/m", name, str(other), code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_in_containers_of_other_users(weights: Path) -> None:
    """A read-only bind in other mount and network namespaces, as another uid: whole or a part.

    Whoever sees a part plans nothing outside of it, not even with the inode's number at hand.
    """
    options = ("--memory", "64M", "--set", "mount.allow_other=true")
    with open_mount(f"file://{weights}", *options) as mounted:
        a, c = inode(mounted.path / "a.safetensors"), inode(mounted.path / "sub" / "c.bin")
        assert "done 1000" in in_a_container(mounted, "", "a.safetensors", 12345, "ENOENT", 1000)
        assert "done 1000" in in_a_container(mounted, "sub", "c.bin", a, "ENOENT", 1000)
        assert "done 0" in in_a_container(mounted, "sub", "c.bin", a, "ENOENT", 0)
        assert c != a


def test_who_may_not_read_may_not_connect(weights: Path) -> None:
    """With a mode that keeps others out, the kernel refuses the connection."""
    options = ("--set", "mount.allow_other=true", "--set", "mount.umask=077")
    with open_mount(f"file://{weights}", *options) as mounted:
        script = (
            "import socket, sys; "
            "socket.socket(socket.AF_UNIX).connect(sys.argv[1] + '/.fusefs/socket')"
        )
        done = subprocess.run(
            ["setpriv", "--reuid", "1000", "--clear-groups", "/usr/bin/python3", "-c", script,
             str(mounted.path)],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert "PermissionError" in done.stderr


@pytest.mark.parametrize("options", [(), ("-l",)], ids=["umount", "umount -l"])
def test_a_connection_does_not_keep_the_mount(weights: Path, options: tuple[str, ...]) -> None:
    """With a client connected a plain umount is not busy, ends the daemon and the connection."""
    with open_mount(f"file://{weights}") as mounted, connect(mounted.path) as client:
        client.ask("plan", plan="p", files=[{"inode": inode(mounted.path / "a.safetensors")}])
        subprocess.run(["umount", *options, str(mounted.path)], check=True, timeout=20)
        wait_ended(mounted.marker)
        assert client.is_closed()


def test_a_lazy_unmount_leaves_readers_their_bytes(weights: Path) -> None:
    """Hints end with the mount's place; a file that is still open is read to its end."""
    with open_mount(f"file://{weights}") as mounted:
        with (mounted.path / "a.safetensors").open("rb") as file, connect(mounted.path) as client:
            subprocess.run(["umount", "-l", str(mounted.path)], check=True, timeout=20)
            assert client.is_closed()
            assert file.read() == (weights / "a.safetensors").read_bytes()
        wait_ended(mounted.marker)


def test_a_killed_daemon_ends_the_connection(weights: Path) -> None:
    """SIGKILL of the daemon leaves no client that waits; the next one takes connections."""
    with (
        open_mount(f"file://{weights}", warnings_expected=True) as mounted,
        connect(mounted.path) as client,
    ):
        os.kill(mounted.status()["pids"]["daemon"], signal.SIGKILL)
        assert client.is_closed()
        with connect(mounted.path) as again:
            assert again.ask("hello", protocol=[1])


def test_another_mount_coming_and_going_changes_nothing(mounted: Mounted, tmp_path: Path) -> None:
    """The daemon looks at the mount table at every change, and goes on while its mount is there."""
    with connect(mounted.path) as client:
        for _ in range(3):
            subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True, timeout=20)
            client.ask("stats")
            subprocess.run(["umount", str(tmp_path)], check=True, timeout=20)
        assert client.ask("stats")["mountpoint"] == str(mounted.path)
