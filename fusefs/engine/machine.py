"""What this machine, or this container, gives us: memory and cores; and our names in its lists.

Reads /proc and /sys, decides nothing.
"""

from __future__ import annotations

import os
from pathlib import Path


def name_process(name: str) -> None:
    """Show as `name` (at most 15 bytes) in ps and top, where all of us would be "python"."""
    Path("/proc/self/comm").write_text(name)


def memory_available(root: Path = Path("/")) -> int:
    """Bytes this process may use at most: the tightest memory cgroup above it, or the machine."""
    limits = [_meminfo(root, "MemTotal")]
    for directory, file in _memory_cgroups(root):
        limits.extend(limit for _, limit in _limits_upwards(directory, file))
    return min(limits)


def page_cache_room(root: Path = Path("/")) -> int:
    """How many bytes of pages may lie unread in the page cache: half of what it could hold.

    Half, because pages that were read stay until they are the oldest. What it could hold is what
    the machine calls available and, in every memory cgroup above us, the limit without the memory
    that cannot be dropped: pushed pages are billed to whoever pushes.
    """
    rooms = [_meminfo(root, "MemAvailable")]
    for directory, file in _memory_cgroups(root):
        rooms.extend(_rooms_upwards(directory, file))
    return max(0, min(rooms) // 2)


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


def _meminfo(root: Path, name: str) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name} line")


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


_KEPT = frozenset({"anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables", "sock"})
"""Of memory.stat (v2): what cannot be dropped to make room for pages."""

_KEPT_V1 = frozenset({"total_rss", "total_shmem"})


def _rooms_upwards(directory: Path, file: str) -> list[int]:
    """What each limit above us leaves for pages."""
    rooms = []
    for level, limit in _limits_upwards(directory, file):
        kept = 0
        for line in (level / "memory.stat").read_text().splitlines():
            name, _, size = line.partition(" ")
            if name in (_KEPT if file == "memory.max" else _KEPT_V1):
                kept += int(size)
        rooms.append(limit - kept)
    return rooms


def _limits_upwards(directory: Path, file: str) -> list[tuple[Path, int]]:
    """Levels and limits from `directory` up to the root; "max" and unreadable levels have none.

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
            limits.append((directory, int(text)))
        if directory.name == "cgroup" or (file != "memory.max" and directory.name == "memory"):
            break
        directory = directory.parent
    return limits
