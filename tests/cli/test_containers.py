"""What containers need of the command line: probes, a start after a kill, an end in time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from fusefs.client import ask_names
from fusefs.mount import kernel
from tests.cli.commandline import ROOT, run_fusefs
from tests.cli.unanswered import open_unanswered
from tests.harness.mounted import cli_command, open_mount

END_S = 30.0
"""An end takes a fraction of a second; the rest is for a busy machine."""

PATIENTLY = ("--timeout", "25")
"""For probes of mounts that are well; a busy machine is no reason to fail."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file in it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"0123456789")
    return source


@contextmanager
def open_in_front(
    folder: Path, mountpoint: Path, *options: str, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """`fusefs mount -f`, once it answers; it has ended when the context does."""
    arguments = ["mount", f"file://{folder}", str(mountpoint), "-f", "--memory", "32M", *options]
    command = subprocess.Popen(
        [*prefix, *cli_command(), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with command:
        try:
            assert command.stdout is not None
            assert "is mounted on" in command.stdout.readline()
            yield command
        finally:
            command.terminate()
            command.wait(END_S)


def test_a_mount_that_is_well_is_alive_and_ready(folder: Path) -> None:
    """`fusefs health` of a good mount is exit status 0 and not a word."""
    with open_mount(f"file://{folder}", "--memory", "32M") as mount:
        for flags in ((), ("--ready",)):
            ended = run_fusefs("health", *PATIENTLY, *flags, mount.path)
            assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")


def test_a_mount_without_its_store_is_alive_but_not_ready(folder: Path) -> None:
    """A store's trouble fails the startup probe, never the liveness probe."""
    with open_mount(
        f"file://{folder}", "--memory", "32M", "--set", "tree.ttl_s=0", warnings_expected=True
    ) as mount:
        folder.rename(folder.with_name("away"))
        assert run_fusefs("health", *PATIENTLY, mount.path).status == 0
        ended = run_fusefs("health", *PATIENTLY, "--ready", mount.path)
        assert ended.status == 1
        assert ended.sentence.startswith(f"{mount.path} cannot list its files")


def test_what_is_no_mount_is_not_alive(tmp_path: Path) -> None:
    """A folder that nothing is mounted on, or that is missing, fails with a sentence."""
    for path in (tmp_path, tmp_path / "missing"):
        ended = run_fusefs("health", path)
        assert ended.status == 1
        assert ended.sentence == f"{path} is not a fusefs mount"


def test_a_wrong_timeout_is_refused(tmp_path: Path) -> None:
    """What is no duration is wrong usage."""
    for text in ("0", "soon", "nan"):
        ended = run_fusefs("health", "--timeout", text, tmp_path)
        assert ended.status == 2
        assert "number of seconds" in ended.sentence


def test_a_mount_that_hangs_does_not_hang_its_probe(tmp_path: Path) -> None:
    """The probe of a mount that nobody serves ends by itself, dead or not."""
    with open_unanswered(tmp_path) as mount:
        ended = run_fusefs("health", "--timeout", "0.3", tmp_path)
        assert ended.sentence == f"{tmp_path} does not answer"
        assert "does not list its files in time" in str(ask_names(str(tmp_path), timeout_s=0.3))
        mount.die()
        ended = run_fusefs("health", *PATIENTLY, "--ready", tmp_path)
        assert ended.status == 1
        assert "has lost its daemon" in ended.sentence


def test_a_container_that_starts_again_mounts_again(folder: Path, tmp_path: Path) -> None:
    """--prepare makes the mountpoint, and detaches all mounts there that have lost their daemon."""
    mountpoint = tmp_path / "pod" / "models"
    with open_in_front(folder, mountpoint, "--prepare"):
        assert (mountpoint / "weights").read_bytes() == b"0123456789"
    with open_unanswered(mountpoint) as first, open_unanswered(mountpoint) as second:
        first.die()
        second.die()
        assert run_fusefs("mount", f"file://{folder}", mountpoint).status == 1
        with open_in_front(folder, mountpoint, "--prepare"):
            assert (mountpoint / "weights").read_bytes() == b"0123456789"
        assert kernel.find_mount(str(mountpoint)) is None


def test_prepare_leaves_a_mount_that_answers(folder: Path) -> None:
    """--prepare takes nothing away from anybody: a mount that lives is refused as ever."""
    with open_mount(f"file://{folder}", "--memory", "32M") as mount:
        ended = run_fusefs("mount", "--prepare", f"file://{folder}", mount.path)
        assert ended.status == 1
        assert "is already a mount" in ended.sentence
        assert (mount.path / "weights").read_bytes() == b"0123456789"


def _hold(mountpoint: Path) -> IO[bytes]:
    return (mountpoint / "weights").open("rb", buffering=0)


def test_readers_have_the_grace_period_that_was_set(folder: Path, tmp_path: Path) -> None:
    """With mount.grace_s=0 a mount in use ends at once; with more, its reader can go on."""
    short, long = tmp_path / "short", tmp_path / "long"
    with (
        open_in_front(folder, short, "--prepare", "--set", "mount.grace_s=0") as at_once,
        open_in_front(folder, long, "--prepare", "--set", "mount.grace_s=3600") as later,
        _hold(short) as cut,
        _hold(long) as served,
    ):
        later.send_signal(signal.SIGTERM)
        at_once.send_signal(signal.SIGTERM)
        assert at_once.wait(END_S) == 0
        assert later.poll() is None
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            cut.read()
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            cut.close()  # flushes
        assert served.read() == b"0123456789"
        served.close()
        assert later.wait(END_S) == 0


def test_the_first_process_of_a_container_leaves_no_zombies(folder: Path, tmp_path: Path) -> None:
    """What a probe leaves behind when it ends is taken away by `fusefs mount -f` as process 1."""
    container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with open_in_front(folder, tmp_path / "mnt", "--prepare", prefix=container) as command:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text()
        (first,) = children.split()
        inside = ["nsenter", "--target", first, "--pid", "--mount"]
        subprocess.run([*inside, "sh", "-c", "sleep 0.1 & exit"], check=True, timeout=END_S)
        until = time.monotonic() + END_S
        listing = [*inside, "ps", "-e", "-o", "comm="]
        while "sleep" in subprocess.run(listing, capture_output=True, text=True, check=True).stdout:
            assert time.monotonic() < until
        os.kill(int(first), signal.SIGTERM)
        assert command.wait(END_S) == 0
