"""What this machine, or this container, gives us: memory and cores.

Reads /proc and /sys, decides nothing.
"""

from __future__ import annotations

import os
from pathlib import Path


def memory_available(root: Path = Path("/")) -> int:
    """Bytes this process may use at most: the tightest memory cgroup above it, or the machine."""
    limits = [_machine_memory(root)]
    for directory, file in _memory_cgroups(root):
        limits.extend(_limits_upwards(directory, file))
    return min(limits)


def cores_available() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


class CoresBusy:
    """How busy all cores of the machine were.

    The mutable state of CoresBusy is the kernel's sums at the last look.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = root / "proc/stat"
        self._busy, self._all = 0, 0

    def since_last(self) -> float:
        """Busy part, 0 to 1, of the time since the last call (the first: since the boot)."""
        ticks = [int(field) for field in self._file.read_text().split("\n", 1)[0].split()[1:9]]
        busy, all_ = sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # less "idle" and "iowait"
        part = (busy - self._busy) / max(1, all_ - self._all)
        self._busy, self._all = busy, all_
        return part


def _machine_memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemTotal line")


def _memory_cgroups(root: Path) -> list[tuple[Path, str]]:
    """Our cgroup directories that may hold a memory limit, with the limit's file name (v2, v1)."""
    found = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if not controllers:
            found.append((root / "sys/fs/cgroup" / relative, "memory.max"))
        elif "memory" in controllers.split(","):
            found.append((root / "sys/fs/cgroup/memory" / relative, "memory.limit_in_bytes"))
    return found


def _limits_upwards(directory: Path, file: str) -> list[int]:
    """Limits from `directory` up to the hierarchy's root; "max" and unreadable levels have none.

    Inside a container the path in /proc/self/cgroup may not exist below /sys/fs/cgroup: then the
    levels that do exist count.
    """
    limits = []
    while directory.name:
        try:
            text = (directory / file).read_text().strip()
        except OSError:
            text = "max"
        if text.isdigit():
            limits.append(int(text))
        if directory.name == "cgroup" or (file != "memory.max" and directory.name == "memory"):
            break
        directory = directory.parent
    return limits
