"""What this machine, or this container, gives us: memory and cores; and our names in its lists.

Reads /proc and /sys, decides nothing.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

CORES_FULL = 0.95
"""The rest is what a scheduler leaves idle between two threads."""

CORES_OURS = 0.5
"""The reader takes a quarter of what a load costs, a store on the same machine another one."""

_PR_SET_NAME = 15
"""Of <linux/prctl.h>; names the calling thread, and a process shows as its first one."""

_libc = ctypes.CDLL(None, use_errno=True)
DESCRIPTORS_WANTED = 65536
"""More than a thousand connections, the most there may be, in one worker."""


def name_process(name: str) -> None:
    """Show as `name` (at most 15 bytes) in ps and top, where all of us would be "python"."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)  # /proc/self/comm may be closed to us


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


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One memory cgroup with a limit, in bytes.

    `used` is charged to it, `kept` of that cannot be dropped, and so many processes were `killed`
    there for want of memory.
    """

    path: str
    limit: int
    used: int
    kept: int
    killed: int


def memory_levels(pid: int, root: Path = Path("/")) -> list[MemoryLevel]:
    """The memory cgroups with a limit above another process. Raises OSError if it has ended."""
    levels = []
    for directory, file in _memory_cgroups(root, str(pid)):
        is_v2 = file == "memory.max"
        for level, limit in _limits_upwards(directory, file):
            if limit < _UNLIMITED:
                used = (
                    level / ("memory.current" if is_v2 else "memory.usage_in_bytes")
                ).read_text()
                events = level / ("memory.events" if is_v2 else "memory.oom_control")
                killed = dict(line.split() for line in events.read_text().splitlines())
                levels.append(
                    MemoryLevel(
                        str(level),
                        limit,
                        int(used),
                        _kept(level, file),
                        int(killed.get("oom_kill", 0)),
                    )
                )
    return levels


def cores_available() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def raise_descriptor_limit() -> int:
    """Open files each of our processes may have, from now on: as many as root allows us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return DESCRIPTORS_WANTED if soft == resource.RLIM_INFINITY else soft


class Cores:
    """Whether the cores of this machine are full, and of us.

    The mutable state of Cores is the kernel's sums at the last look, in its ticks: of all cores'
    time, of the busy part, and of our processes (`pids` and this one).
    """

    def __init__(self, pids: Callable[[], Iterable[int]], root: Path = Path("/")) -> None:
        self._pids = pids
        self._proc = root / "proc"
        self._all, self._busy, self._ours = 0, 0, 0

    def are_full(self) -> bool:
        """Whether since the last call nearly no core was idle, and half of all time was ours.

        What others use says nothing of us: beside them, more connections still get more.
        """
        ticks = [int(field) for field in _fields(self._proc / "stat")[1:9]]
        before = self._all, self._busy, self._ours
        self._all = sum(ticks)
        self._busy = self._all - ticks[3] - ticks[4]  # less "idle" and "iowait"
        self._ours = sum(self._ticks_of(pid) for pid in (os.getpid(), *self._pids()))
        elapsed = max(1, self._all - before[0])
        is_full = self._busy - before[1] >= CORES_FULL * elapsed
        return is_full and self._ours - before[2] >= CORES_OURS * elapsed

    def _ticks_of(self, pid: int) -> int:
        """User and system time of a process (proc_pid_stat(5), fields 14 and 15)."""
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except OSError:
            return 0  # it just ended
        after_name = text.rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])


def _fields(file: Path) -> list[str]:
    """The words of a file's first line."""
    return file.read_text().split("\n", 1)[0].split()


def _meminfo(root: Path, name: str) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name} line")


def _memory_cgroups(root: Path, process: str = "self") -> list[tuple[Path, str]]:
    """The cgroup directories that may hold a memory limit, with the limit's file name (v2, v1)."""
    found = []
    for line in (root / "proc" / process / "cgroup").read_text().splitlines():
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

_UNLIMITED = 1 << 60
"""v1 has no word for "no limit", but a number near 2^63."""


def _rooms_upwards(directory: Path, file: str) -> list[int]:
    """What each limit above us leaves for pages."""
    return [limit - _kept(level, file) for level, limit in _limits_upwards(directory, file)]


def _kept(level: Path, file: str) -> int:
    """How much of what is charged to a level cannot be dropped."""
    kept = 0
    for line in (level / "memory.stat").read_text().splitlines():
        name, _, size = line.partition(" ")
        if name in (_KEPT if file == "memory.max" else _KEPT_V1):
            kept += int(size)
    return kept


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
