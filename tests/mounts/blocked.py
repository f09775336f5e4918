"""A push that waits in the kernel for a page which a READ holds locked: made on purpose.

The one idea: stopped processes put everything in place without a race. The pusher is stopped while
blocks land, so that pushes lie in its socket; then whoever must answer is stopped (the daemon, or
the workers that fetch the other half of a READ); then readers ask for pages of those blocks; then
the pusher goes on, and waits for pages that only an answer unlocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.mounted import ROOT, Mounted
from tests.mounts.crowd import HEAD_MIB
from tests.mounts.test_changes import wait_until

PUSHING_MIN = 8
"""Blocks whose pushes lie in the socket: enough that the readers of the crowd meet some."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A mount with a push that waits, and the readers it waits with. `pids` as status has it."""

    mounted: Mounted
    pids: dict[str, Any]
    stopped: list[int]
    crowd: subprocess.Popen[str]

    def answers(self, timeout_s: float) -> list[str | int]:
        """What the readers got; AssertionError if one of them still waits after `timeout_s`."""
        try:
            output, _ = self.crowd.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"readers still wait after {timeout_s} s") from None
        answers: list[str | int] = json.loads(output)
        return answers

    def go_on(self) -> None:
        """Let whoever was stopped answer."""
        for pid in self.stopped:
            os.kill(pid, signal.SIGCONT)


def waiting_threads(pid: int) -> int:
    """How many threads of a process wait where no signal reaches them."""
    count = 0
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            count += task.read_text().rpartition(")")[2].split()[0] == "D"
    return count


def kill_all(pids: list[int]) -> None:
    """SIGKILL to all of them, as at a container's end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it went with its parent
            os.kill(pid, signal.SIGKILL)


@contextmanager
def open_blocked(mounted: Mounted, plain: Path, stopped: str) -> Iterator[Blocked]:
    """Bring it about, with `stopped` ("daemon" or "workers") not answering until `go_on`."""
    wait_until(lambda: mounted.status()["pids"]["pusher"] > 0)  # 0: it is being started
    pids = mounted.status()["pids"]
    silent = [pids["daemon"]] if stopped == "daemon" else pids["workers"]
    os.kill(pids["pusher"], signal.SIGSTOP)
    command = [sys.executable, "-m", "tests.mounts.crowd", str(mounted.path / plain.name)]
    crowd = subprocess.Popen(
        [*command, str(plain), str(HEAD_MIB), str(plain.stat().st_size >> 20)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "ready\n"
        wait_until(lambda: _has_landed(mounted))
        for pid in silent:
            os.kill(pid, signal.SIGSTOP)
        crowd.stdin.write("\n")
        crowd.stdin.flush()
        wait_until(lambda: waiting_threads(crowd.pid) > 0 and _is_settled(crowd.pid))
        os.kill(pids["pusher"], signal.SIGCONT)
        wait_until(lambda: waiting_threads(pids["pusher"]) > 0 and _is_settled(pids["pusher"]))
        yield Blocked(mounted, pids, silent, crowd)
    finally:
        crowd.kill()
        for pid in silent:
            with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                os.kill(pid, signal.SIGCONT)
        crowd.communicate()


def _has_landed(mounted: Mounted) -> bool:
    """Whether all that is wanted is there, and pushes lie in the socket."""
    status = mounted.status()
    return bool(status["arena"]["fetching"] == 0 and status["page_cache"]["pushing"] >= PUSHING_MIN)


def _is_settled(pid: int) -> bool:
    """Whether none of its threads runs: then those that wait in the kernel will go on waiting."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if task.read_text().rpartition(")")[2].split()[0] == "R":
                return False
    return True
