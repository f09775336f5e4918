"""A real mount for tests, the demo and the bench, made and ended by the real command line.

The one idea: whatever goes wrong, nothing stays. All processes of a mount carry a marker in their
environment, so they are found even when no mount answers; a watchdog in a process of its own frees
readers that hang in the kernel (`tests/harness/watchdog.py`); leaving the context asserts that the
mount is gone and that every process has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.memory import MARKER, Peak, marked_pids, open_peak, pss_bytes
from tests.harness.watchdog import find_mount, tear_down

ROOT = Path(__file__).resolve().parent.parent.parent
"""The repository: where `python -m fusefs.cli` finds the code under test."""

LIMIT_S = 120.0
"""How long a mount may live by default: shorter than the bound on a test, which ends no hang."""
MOUNT_TIMEOUT_S = 60.0
"""The command's own bound on a start is shorter; past this it hangs."""
UMOUNT_TIMEOUT_S = 30.0
"""`fusefs umount` gives up after 10 s by itself; the rest is Python's start on a busy machine."""
END_TIMEOUT_S = 10.0
"""How long processes may take to end after the unmount, as `fusefs umount` has it."""
WATCHDOG_TIMEOUT_S = 20.0
"""How long the watchdog may take to leave; it is at most in the middle of its work."""
STATS = "user.fusefs.stats"


class MountFailed(Exception):
    """The command failed; `status` and `stderr` are what it said."""

    def __init__(self, status: int, stderr: str) -> None:
        super().__init__(f"exit {status}: {stderr.strip()}")
        self.status = status
        self.stderr = stderr


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount that answers. `marker` tells its processes from all others."""

    path: Path
    marker: str
    environment: Mapping[str, str]

    def status(self) -> dict[str, Any]:
        """Return the daemon's statistics, as `fusefs status --json` has them."""
        stats: dict[str, Any] = json.loads(os.getxattr(self.path, STATS))
        return stats

    def counters(self) -> dict[str, int]:
        """Return the daemon's counters."""
        counters: dict[str, int] = self.status()["counters"]
        return counters

    def pids(self) -> list[int]:
        """Return every live process of this mount, asking the kernel and not the daemon."""
        return marked_pids(self.marker)

    def pss_bytes(self) -> int:
        """Return the memory of all processes of this mount together."""
        return pss_bytes(self.pids())

    def open_peak(self) -> AbstractContextManager[Peak]:
        """Sample that memory until the context ends; the peak is in the yielded object then."""
        return open_peak(self.marker)

    def run_cli(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run `fusefs ARGUMENTS` in this mount's environment, not as one of its processes."""
        environment = {k: v for k, v in self.environment.items() if k != MARKER}
        return run_cli(*arguments, environment=environment, timeout_s=timeout_s)

    def is_mounted(self) -> bool:
        """Tell whether the mount is there, without touching it."""
        return find_mount(self.path) is not None


def run_cli(
    *arguments: str, environment: Mapping[str, str], timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run `fusefs ARGUMENTS` in this environment."""
    return subprocess.run(
        [*cli_command(), *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def cli_command() -> list[str]:
    """Return the command line under test: this interpreter, this tree."""
    return [sys.executable, "-m", "fusefs.cli"]


@contextmanager
def open_mount(
    source: str,
    *options: str,
    environment: Mapping[str, str] | None = None,
    prefix_command: Sequence[str] = (),
    command: Sequence[str] | None = None,
    limit_s: float = LIMIT_S,
    warnings_expected: bool = False,
) -> Iterator[Mounted]:
    """Mount `source` on a fresh folder with `fusefs mount`; unmount with `fusefs umount`.

    `environment` is added to this process's own (a server's `environment`); `prefix_command` runs
    the command in other circumstances (`unshare`, `setpriv`); `command` is another way to call it
    (the console script). After `limit_s` the watchdog aborts the mount and kills its processes.

    Raises `MountFailed` if the command fails, and AssertionError if a process outlives the unmount
    or the daemon logged a warning and `warnings_expected` is false.
    """
    marker = uuid.uuid4().hex
    path = Path(tempfile.mkdtemp(prefix="fusefs-mnt-")).resolve()
    path.chmod(0o755)  # mkdtemp makes it 0700: another user's mount could not use it.
    full = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {}), MARKER: marker}
    mounted = Mounted(path, marker, full)
    call = [*prefix_command, *(command or cli_command())]
    watchdog = _start_watchdog(path, limit_s, marker)
    try:
        _run([*call, "mount", source, str(path), *options], full, MOUNT_TIMEOUT_S)
        yield mounted
        if mounted.is_mounted():
            warnings = [] if warnings_expected else mounted.status()["warnings"]
            _run([*call, "umount", str(path)], full, UMOUNT_TIMEOUT_S)
            assert not warnings, f"the daemon warned: {warnings}"
        wait_ended(marker)
    finally:
        freed = _stop_watchdog(watchdog)
        # After an orderly end there is nothing to tear down.
        tear_down(path, marker)
        path.rmdir()
        # In place of what the body met in consequence, which stands above it in the traceback.
        assert not freed, f"the watchdog had to end the mount after {limit_s} s"


def wait_ended(marker: str) -> None:
    """Wait until the last process of the group has ended. AssertionError after `END_TIMEOUT_S`."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while pids := marked_pids(marker):
        names = {pid: _command_line(pid) for pid in pids}
        assert time.monotonic() < deadline, f"still running after the unmount: {names}"
        time.sleep(0.02)


def _command_line(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "ended"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
    # A file, not a pipe: a daemon that keeps its parent's stderr open must not block the command's
    # reader; that it does is its own test's matter.
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output.seek(0)
            raise MountFailed(-1, f"no end after {timeout_s:.0f} s: {output.read()}") from error
        if done.returncode != 0:
            output.seek(0)
            raise MountFailed(done.returncode, output.read())


def _start_watchdog(path: Path, limit_s: float, marker: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.harness.watchdog", str(path), str(limit_s), marker],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests; this one outlives them.
    )


def _stop_watchdog(watchdog: subprocess.Popen[bytes]) -> bool:
    """Dismiss it; tell whether it had to act."""
    # A pipe closed at the other end is its answer too: it acted and left.
    with contextlib.suppress(BrokenPipeError):
        watchdog.communicate(b"\n", timeout=WATCHDOG_TIMEOUT_S)
    return watchdog.wait(timeout=WATCHDOG_TIMEOUT_S) != 0
