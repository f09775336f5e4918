"""Workers and spawners that hang are replaced: nobody waits for them for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fusefs.engine import jobs
from fusefs.engine.pool import SILENT_LOOK_S, SILENT_S, Pool, _Worker
from fusefs.telemetry.counters import Counters
from tests.conftest import ExpectedWarnings
from tests.harness.mounted import open_mount
from tests.mounts.test_changes import wait_until

Clock = trio.testing.MockClock


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that plays a worker which says nothing."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def make_worker(process: subprocess.Popen[bytes]) -> tuple[_Worker, socket.socket]:
    """That process as the pool sees it, and the worker's end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    pidfd = os.pidfd_open(process.pid)
    return _Worker(process.pid, ours, 4, pidfd, trio.current_time()), theirs


async def test_a_worker_that_owes_an_answer_and_is_silent_is_killed(
    autojump_clock: Clock, expect_warning: ExpectedWarnings, sleeper: subprocess.Popen[bytes]
) -> None:
    """Stopped, or hanging: it is given longer than any read, and no more."""
    expect_warning("says nothing for 150 s: it is killed")
    pool = Pool(1, 4, Counters())
    worker, theirs = make_worker(sleeper)
    pool._workers.append(worker)
    pool._send(worker, 1, {"id": 1}, None)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool._end_silent)
            await trio.sleep(SILENT_S)
            assert sleeper.poll() is None
            await trio.sleep(2 * SILENT_LOOK_S)
            assert sleeper.wait(10) == -signal.SIGKILL
            nursery.cancel_scope.cancel()
    worker.close()


async def test_a_worker_that_speaks_or_owes_nothing_lives(
    autojump_clock: Clock, sleeper: subprocess.Popen[bytes]
) -> None:
    """A slow store shows in small pieces; and an idle worker may be idle for days."""
    pool = Pool(1, 4, Counters())
    worker, theirs = make_worker(sleeper)
    pool._workers.append(worker)
    heard: list[jobs.Message] = []
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool._end_silent)
            await trio.sleep(10 * SILENT_S)  # owes nothing
            pool._send(worker, 1, {"id": 1}, None)
            for piece in range(5):
                await trio.sleep(SILENT_S - SILENT_LOOK_S)
                theirs.send(jobs.encode({"id": 1, "landed": piece}))
                assert await pool._receive(worker, heard.append, lambda: None)
            assert sleeper.poll() is None
            nursery.cancel_scope.cancel()
    assert len(heard) == 5
    worker.close()


@pytest.mark.timeout(120)
def test_a_stopped_spawner_is_replaced(tmp_path: Path) -> None:
    """A worker that dies meanwhile gets a successor from another spawner; the load goes on."""
    (tmp_path / "w.bin").write_bytes(os.urandom(3 << 20))
    with open_mount(f"file://{tmp_path}", warnings_expected=True) as mounted:
        pids = mounted.status()["pids"]
        os.kill(pids["spawner"], signal.SIGSTOP)
        for pid in pids["workers"]:
            os.kill(pid, signal.SIGKILL)
        assert (mounted.path / "w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()
        wait_until(lambda: len(mounted.status()["pids"]["workers"]) == len(pids["workers"]))
        after = mounted.status()["pids"]
        assert after["spawner"] != pids["spawner"]
        assert not set(after["workers"]) & set(pids["workers"])
