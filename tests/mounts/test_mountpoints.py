"""Mountpoints that somebody else can rename: we mount on the folder that was checked, or not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusefs.errors import AccessDenied, FusefsError
from fusefs.mount import kernel
from tests.harness.mounted import open_mount
from tests.harness.watchdog import tear_down


@dataclass(frozen=True, slots=True)
class Trap:
    """A folder `mine/mnt` that was checked, and another, `theirs/mnt`, that must stay free."""

    mine: Path
    theirs: Path

    def spring(self) -> None:
        """Let the checked path lead to the other folder, by a link above it."""
        self.mine.rename(self.mine.with_name("away"))
        self.mine.symlink_to(self.theirs)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """The two folders; whatever gets mounted is taken away."""
    made = Trap(tmp_path.resolve() / "mine", tmp_path.resolve() / "theirs")
    for folder in (made.mine, made.theirs):
        (folder / "mnt").mkdir(parents=True)
    yield made
    for folder in (made.mine, made.theirs, tmp_path.resolve() / "away"):
        if kernel.find_mount(str(folder / "mnt")) is not None:
            tear_down(folder / "mnt", "no process of ours")


@contextlib.contextmanager
def bare(mountpoint: Path) -> Iterator[int]:
    """A mount that nobody answers."""
    kernel.mount_connections()
    fd = kernel.mount_fuse("bare", str(mountpoint), allow_other=False)
    try:
        yield fd
    finally:
        os.close(fd)


def mounted_below(folder: Path) -> list[str]:
    """What is mounted there."""
    return [row.mountpoint for row in kernel.mount_rows() if row.mountpoint.startswith(str(folder))]


def test_a_link_above_the_mountpoint_is_not_followed(trap: Trap, tmp_path: Path) -> None:
    """A folder that was replaced by a link after the check is refused, and nothing is mounted."""
    trap.spring()
    with pytest.raises(AccessDenied, match="symbolic link"):
        kernel.mount_fuse("bare", str(trap.mine / "mnt"), allow_other=False)
    assert mounted_below(tmp_path) == []


def test_a_mountpoint_that_is_a_link_is_not_followed(trap: Trap, tmp_path: Path) -> None:
    """The mountpoint itself may not have become a link either."""
    (trap.mine / "mnt").rmdir()
    (trap.mine / "mnt").symlink_to(trap.theirs / "mnt")
    with pytest.raises(AccessDenied, match="symbolic link"):
        kernel.mount_fuse("bare", str(trap.mine / "mnt"), allow_other=False)
    assert mounted_below(tmp_path) == []


def test_an_unmount_leaves_the_mounts_of_others(trap: Trap) -> None:
    """A path that came to lead to another mount unmounts nothing, and makes nothing read-only."""
    with bare(trap.theirs / "mnt"):
        trap.spring()
        path = str(trap.mine / "mnt")
        for lazy in (False, True):
            with pytest.raises(OSError, match="symbolic link"):
                kernel.unmount(path, lazy)
        with pytest.raises(FusefsError, match="symbolic link"):
            kernel.make_read_only(path)
        assert mounted_below(trap.theirs) == [str(trap.theirs / "mnt")]


def test_a_link_that_was_typed_is_resolved(trap: Trap, plain: Path) -> None:
    """Whoever types a link gets the mount where it leads: the command resolves it before all."""
    with open_mount(f"file://{plain}") as mounted:
        link = trap.mine / "link"
        link.symlink_to(mounted.path)
        assert (link / "one").read_bytes() == (plain / "one").read_bytes()
        done = mounted.run_cli("umount", str(link))
        assert done.returncode == 0, done.stderr
        assert not mounted.is_mounted()
