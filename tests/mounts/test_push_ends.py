"""A push that waits for a READ's page hangs nobody, whoever dies or is taken away meanwhile.

Each ending is met with a push that waits in the kernel (`tests/mounts/blocked.py`), which is the
worst moment, rather than at a time that may or may not be that moment.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount, wait_ended
from tests.mounts.blocked import kill_all, open_blocked
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
BOUND_S = 15.0
"""By then every reader has its bytes or an error; it takes well below one second."""

ABORTED = {errno.ENOTCONN, errno.ECONNABORTED}
ENDED = ABORTED | {"exact", "short"}
"""What a reader may get of a mount that ends."""

OPTIONS = ("--memory", "512M", "--set", "kernel.read_ahead_kb=128")
"""A small arena allows few pushes at once; here many lie in the socket. And the kernel asks for
little ahead: what was fetched last was fetched ahead, and lies in a push."""


@pytest.fixture(scope="module")
def plain_big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 200 MiB in a directory of its own."""
    file = tmp_path_factory.mktemp("push") / "w.dat"
    file.write_bytes(random.Random(5).randbytes(200 * MIB))
    return file


def gone(mounted: Mounted) -> None:
    """The mount and all its processes are gone, in bounded time."""
    wait_until(lambda: not mounted.is_mounted())
    wait_ended(mounted.marker)


@pytest.mark.parametrize("stopped", ["daemon", "workers"])
def test_a_push_goes_on_once_the_read_is_answered(plain_big: Path, stopped: str) -> None:
    """A daemon or workers that stand still for a moment cost that moment, and no byte."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS) as mounted:
        with open_blocked(mounted, plain_big, stopped) as blocked:
            blocked.go_on()
            assert set(blocked.answers(BOUND_S)) == {"exact"}
        wait_until(lambda: mounted.status()["page_cache"]["pushing"] == 0)
        counters = mounted.counters()
        assert counters["bytes_pushed"] > 0
        assert (counters["read_errors"], counters["pushes_failed"]) == (0, 0)
        assert (mounted.path / "w.dat").read_bytes() == plain_big.read_bytes()


@pytest.mark.parametrize("stopped", ["daemon", "workers"])
def test_killing_the_daemon_costs_readers_and_pusher_no_byte(plain_big: Path, stopped: str) -> None:
    """With READs and a push that wait for each other: the next daemon answers, and frees both."""
    source = f"file://{plain_big.parent}"
    with open_mount(source, *OPTIONS, warnings_expected=True) as mounted:
        with open_blocked(mounted, plain_big, stopped) as blocked:
            os.kill(blocked.pids["daemon"], signal.SIGKILL)
            assert set(blocked.answers(BOUND_S)) == {"exact"}
            dead = {blocked.pids["pusher"], *blocked.pids["workers"], blocked.pids["spawner"]}
            wait_until(lambda: not dead & set(mounted.pids()))
        assert (mounted.path / "w.dat").read_bytes() == plain_big.read_bytes()
        status = mounted.status()
        assert status["restarts"] == 1
        assert status["last_end"] == "was killed by SIGKILL"
        assert status["counters"]["read_errors"] == 0


def test_killing_the_pusher_while_it_waits_costs_no_byte(plain_big: Path) -> None:
    """It dies when its READ is answered; the load goes on without it, and then with another."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS, warnings_expected=True) as mounted:
        with open_blocked(mounted, plain_big, "daemon") as blocked:
            os.kill(blocked.pids["pusher"], signal.SIGKILL)
            blocked.go_on()
            assert set(blocked.answers(BOUND_S)) == {"exact"}
            wait_until(lambda: mounted.status()["pids"]["pusher"] != blocked.pids["pusher"])
        assert (mounted.path / "w.dat").read_bytes() == plain_big.read_bytes()
        assert mounted.counters()["read_errors"] == 0


def test_a_lazy_unmount_lets_readers_finish(plain_big: Path) -> None:
    """`umount -l` with pushes under way: the readers get their bytes, then all of it ends."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS) as mounted:
        with open_blocked(mounted, plain_big, "daemon") as blocked:
            subprocess.run(["umount", "-l", str(mounted.path)], check=True, timeout=BOUND_S)
            assert not mounted.is_mounted()
            blocked.go_on()
            assert set(blocked.answers(BOUND_S)) == {"exact"}
        gone(mounted)


def test_killing_everything_at_once_leaves_nothing(plain_big: Path) -> None:
    """A container's end, its readers among it, while a push waits for a READ under way."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS) as mounted:
        with open_blocked(mounted, plain_big, "workers") as blocked:
            kill_all([blocked.crowd.pid, *mounted.pids()])
            wait_ended(mounted.marker)
        subprocess.run(["umount", str(mounted.path)], check=True, timeout=BOUND_S)


def test_a_mount_that_nobody_is_left_to_answer_can_be_detached(plain_big: Path) -> None:
    """Readers that outlive all processes of the mount are freed by `fusefs umount -l`."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS) as mounted:
        with open_blocked(mounted, plain_big, "daemon") as blocked:
            kill_all(mounted.pids())
            done = mounted.run_cli("umount", "-l", str(mounted.path))
            assert done.returncode == 0, done.stderr
            assert set(blocked.answers(BOUND_S)) <= ENDED
        gone(mounted)


def test_without_its_keeper_a_mount_pushes_no_more(plain_big: Path) -> None:
    """Nobody is left who could abort it; READs serve every byte."""
    with open_mount(f"file://{plain_big.parent}", *OPTIONS) as mounted:
        os.kill(mounted.status()["pids"]["keeper"], signal.SIGKILL)
        wait_until(lambda: mounted.status()["page_cache"]["refused"] == "the keeper is gone")
        assert (mounted.path / "w.dat").read_bytes() == plain_big.read_bytes()
        assert mounted.counters()["bytes_pushed"] == 0
