"""A memory cgroup with a limit, below our own: v2 where the controller is there, else v1.

Needs root. A missing controller is an error: a test that wants a limit proves nothing without one.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_LEAVE_TIMEOUT_S = 10.0
"""How long processes that end may take to leave."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A memory cgroup. `version` is 1 or 2."""

    directory: Path
    version: int

    @property
    def prefix_command(self) -> list[str]:
        """Runs what follows inside."""
        return ["sh", "-c", f'echo $$ > {self.directory}/cgroup.procs && exec "$@"', "sh"]

    def killed(self) -> int:
        """How many processes were killed for want of memory."""
        events = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = (self.directory / events).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def used_bytes(self) -> int:
        """What is charged to it now."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.directory / name).read_text())

    def reclaim(self) -> None:
        """Have the kernel drop what it can: pages of files, and its own records of them."""
        if self.version == 1:
            (self.directory / "memory.force_empty").write_text("0")
            return
        with contextlib.suppress(BlockingIOError):  # less than asked for could be dropped
            (self.directory / "memory.reclaim").write_text(str(self.used_bytes()))


@contextmanager
def open_cgroup(limit_bytes: int) -> Iterator[Cgroup]:
    """Make one; whoever is inside must have ended at the end. Raises OSError."""
    parent, version = _parent()
    directory = parent / f"fusefs-test-{uuid.uuid4().hex[:12]}"
    directory.mkdir()
    try:
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        (directory / name).write_text(str(limit_bytes))
        yield Cgroup(directory, version)
    finally:
        _remove(directory)


def _parent() -> tuple[Path, int]:
    """Where a child with a memory limit can be made, and the version."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = _ROOT / "memory" / path.lstrip("/")
            return (own if own.is_dir() else _ROOT / "memory"), 1
    # v2 allows no processes beside children with controllers, but for the root of what we see.
    with contextlib.suppress(OSError):
        (_ROOT / "cgroup.subtree_control").write_text("+memory")
    return _ROOT, 2


def _remove(directory: Path) -> None:
    until = time.monotonic() + _LEAVE_TIMEOUT_S
    while True:
        try:
            os.rmdir(directory)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def open_pids_cgroup(most: int) -> Iterator[Cgroup]:
    """Make one that allows `most` processes and threads; all must have ended at the end."""
    parent = _pids_parent()
    directory = parent / f"fusefs-test-{uuid.uuid4().hex[:12]}"
    directory.mkdir()
    try:
        (directory / "pids.max").write_text(str(most))
        yield Cgroup(directory, 1 if parent != _ROOT else 2)
    finally:
        _remove(directory)


def _pids_parent() -> Path:
    """Where a child with a limit of processes can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            own = _ROOT / "pids" / path.lstrip("/")
            return own if own.is_dir() else _ROOT / "pids"
    with contextlib.suppress(OSError):
        (_ROOT / "cgroup.subtree_control").write_text("+pids")
    return _ROOT
