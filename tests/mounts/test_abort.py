"""The keeper's last resort, on connections that nobody answers: bare mounts without a daemon."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusefs.mount import kernel
from fusefs.mount.estate import Estate
from fusefs.mount.holding import Holding
from fusefs.mount.job import Job
from fusefs.mount.tuning import may_abort
from tests.harness.watchdog import tear_down

BOUND_S = 10.0


@dataclass(slots=True)
class Bare:
    """A mount whose descriptor we hold, and which we never answer."""

    path: Path
    fd: int
    device: str


@contextmanager
def open_bare(path: Path) -> Iterator[Bare]:
    """Mount at `path`, with nobody to answer."""
    path.mkdir()
    kernel.mount_connections()
    fd = kernel.mount_fuse("bare", str(path), allow_other=False)
    row = kernel.find_mount(str(path))
    assert row is not None
    try:
        yield Bare(path, fd, row.device)
    finally:
        tear_down(path, "no process of ours")
        with contextlib.suppress(OSError):  # the keeper may have closed it
            os.close(fd)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    """A bare mount."""
    with open_bare(tmp_path / "bare") as mount:
        yield mount


@contextmanager
def open_holding(bare: Bare, device: str | None = None) -> Iterator[Holding]:
    """A mount as the keeper of a dead daemon holds it."""
    estate = Estate(os.dup(bare.fd), b"", device or bare.device, os.memfd_create("none"))
    holding = Holding(
        Job(-1, "bare", str(bare.path), allow_other=False, grace_s=10.0, owns=True), estate
    )
    yield holding
    holding.close()


def test_a_connection_is_connected_until_it_is_aborted(bare: Bare) -> None:
    """The descriptor itself tells; numbers of connections are used again."""
    assert kernel.is_connected(bare.fd)
    kernel.abort_connection(bare.device)
    assert not kernel.is_connected(bare.fd)


def test_a_connection_is_not_connected_once_it_is_unmounted(bare: Bare) -> None:
    """Whoever unmounted it, and however."""
    kernel.unmount(str(bare.path), lazy=True)
    assert not kernel.is_connected(bare.fd)


def test_the_keeper_frees_whoever_waits_and_unmounts(bare: Bare) -> None:
    """A reader of a mount that nobody answers gets an error, and the mountpoint is free again."""
    command = [sys.executable, "-S", "-c", "import os, sys; os.listdir(sys.argv[1])"]
    reader = subprocess.Popen([*command, str(bare.path)], stderr=subprocess.PIPE)
    waiting = Path("/sys/fs/fuse/connections", bare.device.partition(":")[2], "waiting")
    while int(waiting.read_text()) < 2:  # the first one is the kernel's own: FUSE_INIT
        assert reader.poll() is None
    with open_holding(bare) as holding:
        holding.abort()
        holding.unmount()
    _, said = reader.communicate(timeout=BOUND_S)
    assert b"OSError" in said or b"ConnectionAbortedError" in said
    assert kernel.find_mount(str(bare.path)) is None


def test_the_keeper_leaves_another_mount_of_the_same_number_alone(
    bare: Bare, tmp_path: Path
) -> None:
    """Once ours has ended, its number may be a stranger's, who must not be aborted."""
    with open_bare(tmp_path / "ours") as ours, open_holding(ours, bare.device) as holding:
        kernel.unmount(str(ours.path))  # and the kernel has given our number away
        holding.abort()
        assert kernel.is_connected(bare.fd)


def test_whether_a_mount_can_be_aborted_is_asked_of_its_own_file(tmp_path: Path) -> None:
    """A missing fusectl, as in many containers, means no."""
    connection = tmp_path / "fs/fuse/connections/77"
    assert not may_abort("0:77", tmp_path)
    connection.mkdir(parents=True)
    assert not may_abort("0:77", tmp_path)
    (connection / "abort").touch()
    assert may_abort("0:77", tmp_path)
