"""What the tests of recovery do to a mount, and with an application on it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.harness.watchdog import find_mount
from tests.mounts.test_changes import wait_until

BOUND_S = 60.0
"""A pause is about a second; on a machine with a dozen busy processes, ten."""


class Played:
    """An application that was started; `do` and `results` speak with it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def do(self, *lines: str) -> None:
        """Have it do these things, all at once."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()

    def results(self, count: int) -> dict[str, str]:
        """The next so many results, by label. queue.Empty if they do not come."""
        return dict(self.line().split() for _ in range(count))

    def line(self) -> str:
        """The next line it wrote."""
        return self._lines.get(timeout=BOUND_S)

    @property
    def has_results(self) -> bool:
        """Whether something came that was not taken."""
        return not self._lines.empty()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())


@contextmanager
def open_application(mounted: Mounted, plain: Path) -> Iterator[Played]:
    """Start `tests.recovery.application` on a mount."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.recovery.application", str(mounted.path), str(plain)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    played = Played(process)
    try:
        assert played.line() == "ready"
        yield played
    finally:
        process.kill()
        process.communicate()


def waiting(mounted: Mounted) -> int:
    """How many requests of the mount have no answer yet."""
    entry = find_mount(mounted.path)
    assert entry is not None
    minor = entry.device.partition(":")[2]
    return int(Path(f"/sys/fs/fuse/connections/{minor}/waiting").read_text())


def wait_waiting(mounted: Mounted, count: int) -> None:
    """Until so many requests have no answer."""
    wait_until(lambda: waiting(mounted) >= count)


def wait_replaced(mounted: Mounted, restarts: int = 1) -> None:
    """Until so many daemons were replaced."""
    wait_until(lambda: mounted.status()["restarts"] >= restarts, BOUND_S)


def kill(pid: int) -> None:
    """SIGKILL to one process, never to a group."""
    assert pid > 0
    os.kill(pid, signal.SIGKILL)


def kill_daemon(mounted: Mounted) -> None:
    """SIGKILL to the daemon that answers now."""
    kill(mounted.status()["pids"]["daemon"])


@contextmanager
def open_copy(code: Path, plain: Path, *options: str) -> Iterator[Mounted]:
    """A mount that is served by a copy of our code, with its log beside it."""
    with open_mount(
        f"file://{plain}",
        *("--set", f"log.file={code.parent / 'log'}", *options),
        environment={"PYTHONPATH": str(code)},
        command=[sys.executable, "-P", "-m", "fusefs.cli"],
        warnings_expected=True,
    ) as mounted:
        yield mounted


def replace(file: Path, old: str, new: str) -> None:
    """Change the code; AssertionError if it is not what it was."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
