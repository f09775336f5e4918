"""The commands on real mounts, as their users run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusefs
from fusefs.mount import kernel
from tests.cli.commandline import ROOT, run_fusefs, run_mount8
from tests.harness.mounted import Mounted, open_mount


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file and a folder in it."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "weights").write_bytes(b"0123456789")
    os.utime(source / "weights", (1_700_000_000, 1_700_000_000))
    return source


@pytest.fixture
def mounted(folder: Path) -> Iterator[Mounted]:
    """That folder, mounted."""
    with open_mount(f"file://{folder}", "--memory", "32M") as mount:
        yield mount


def test_the_version_is_told() -> None:
    """`fusefs --version` names program and version."""
    ended = run_fusefs("--version")
    assert (ended.status, ended.stdout) == (0, f"fusefs {fusefs.__version__}\n")


def test_help_names_every_command() -> None:
    """`fusefs --help` and those of the commands succeed."""
    text = run_fusefs("--help").stdout
    for command in ("mount", "umount", "status", "doctor", "push", "pull", "ls", "cat"):
        assert command in text
        assert run_fusefs(command, "--help").status == 0
    assert "engine.memory" in run_fusefs("mount", "--help").stdout


def test_ls_shows_what_a_mount_would(folder: Path) -> None:
    """`fusefs ls` lists one level of a source without mounting it."""
    text = run_fusefs("ls", f"file://{folder}")
    assert (text.status, text.stderr) == (0, "")
    assert text.stdout == (" -  -                     sub/\n10  2023-11-14T22:13:20Z  weights\n")
    rows = json.loads(run_fusefs("ls", f"file://{folder}", "--json").stdout)
    assert rows == [
        {"name": "sub/", "type": "directory"},
        {"name": "weights", "type": "file", "size": 10, "mtime": "2023-11-14T22:13:20Z"},
    ]


def test_ls_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    """`fusefs ls` of what is not there exits 1 and names it; of what makes no sense, 2."""
    missing = run_fusefs("ls", f"file://{tmp_path}/missing")
    assert missing.status == 1
    assert str(tmp_path / "missing") in missing.sentence
    assert run_fusefs("ls", "nonsense").status == 2


def test_a_reader_that_has_seen_enough_is_no_failure_to_tell(tmp_path: Path) -> None:
    """`fusefs ls … | head -1` says nothing on stderr."""
    for number in range(3000):
        (tmp_path / f"{number:0100d}").touch()
    listing = subprocess.Popen(
        [sys.executable, "-m", "fusefs.cli", "ls", f"file://{tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.readline().endswith(b"0\n")
        listing.stdout.close()
        assert listing.stderr.read() == b""


def test_status_of_one_mount_and_of_all(mounted: Mounted) -> None:
    """With a mountpoint --json gives an object, without one a list; people get text."""
    one = run_fusefs("status", mounted.path, "--json")
    assert one.status == 0
    stats = json.loads(one.stdout)
    assert stats["mountpoint"] == str(mounted.path)
    assert stats["pids"]["keeper"] > 0
    everything = json.loads(run_fusefs("status", "--json").stdout)
    assert str(mounted.path) in [entry["mountpoint"] for entry in everything]
    text = run_fusefs("status", mounted.path).stdout
    assert text.startswith(f"{mounted.path}\n  source      file:///")
    assert f"keeper {stats['pids']['keeper']}" in text


def test_the_mount_has_the_configuration_it_was_given(mounted: Mounted) -> None:
    """What flags said has arrived in the daemon."""
    assert mounted.status()["memory_limit_bytes"] == 32 << 20


def test_a_mount_in_use_is_not_torn_away(mounted: Mounted) -> None:
    """`fusefs umount` of a mount in use fails and names -l; with -l it is detached."""
    with (mounted.path / "weights").open("rb") as file:
        ended = run_fusefs("umount", mounted.path)
        assert ended.status == 1
        assert f"fusefs umount -l {mounted.path}" in ended.sentence
        assert mounted.is_mounted()
        assert run_fusefs("umount", "-l", mounted.path).status == 0
        assert not mounted.is_mounted()
        assert file.read() == b"0123456789"


def test_umount_ends_every_process(mounted: Mounted) -> None:
    """When `fusefs umount` is done, so is everything the mount ran."""
    assert mounted.pids()
    ended = run_fusefs("umount", mounted.path)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")
    assert not mounted.is_mounted()
    assert mounted.pids() == []


def test_a_mount_is_not_mounted_over(mounted: Mounted, folder: Path) -> None:
    """A second mount on the same folder is refused with what is there."""
    ended = run_fusefs("mount", f"file://{folder}", mounted.path)
    assert ended.status == 1
    assert f"{mounted.path} is already a mount of file://{folder}" in ended.sentence


def test_mount8_mounts(folder: Path, tmp_path: Path) -> None:
    """`mount.fusefs` as called for an fstab line mounts with the line's settings."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    options = "rw,_netdev,nofail,umask=077,memory=32M"
    ended = run_mount8(f"file://{folder}", mountpoint, "-o", options)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")
    try:
        assert (mountpoint / "weights").stat().st_mode & 0o777 == 0o400
    finally:
        assert run_fusefs("umount", mountpoint).status == 0


def test_in_front_the_mount_ends_with_the_command(folder: Path, tmp_path: Path) -> None:
    """`fusefs mount -f` stays, and unmounts on SIGTERM with exit status 0."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    command = subprocess.Popen(
        [sys.executable, "-m", "fusefs.cli", "mount", f"file://{folder}", str(mountpoint), "-f"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stdout is not None
        try:
            assert command.stdout.readline() == f"file://{folder} is mounted on {mountpoint}\n"
            assert (mountpoint / "weights").read_bytes() == b"0123456789"
        finally:
            command.send_signal(signal.SIGTERM)
            command.wait(30)
    assert command.returncode == 0
    assert kernel.find_mount(str(mountpoint)) is None
