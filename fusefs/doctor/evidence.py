"""What can be known of a mount, as values. None everywhere means: not known, and says nothing.

Gathered by `fusefs.doctor.examine`, judged by `fusefs.doctor.findings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusefs.client import Answer
from fusefs.engine.machine import MemoryLevel
from fusefs.mount.kernel import MountRow

KEEPER, DAEMON, SPAWNER, FETCH, PUSH = "keeper", "daemon", "spawner", "fetch", "push"
"""The processes of a mount, by what stands behind "fusefs-" in ps and top."""

NAMESPACE = "mount namespace"
"""How a process uses a mount that it only sees: it keeps it alive."""

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, never written


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the mount. `state` is that of proc_pid_stat(5): R, S, D, T, t, Z, I.

    `waits` tells where in the kernel it sleeps; `stack` is the kernel's own of a thread in D.
    """

    role: str
    pid: int
    parent: int
    state: str
    uid: int | None = None
    gid: int | None = None
    waits: str | None = None
    stack: tuple[str, ...] = ()
    descriptors: int | None = None
    descriptors_max: int | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """The kernel's side. `waiting` is how many requests wait for an answer."""

    number: str
    waiting: int | None = None
    max_background: int | None = None
    read_ahead_kb: int | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses the mount, and how: an open or a mapped file, a working directory."""

    pid: int
    name: str
    state: str
    how: str


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What the store said to one question: nothing wrong, or `error`, a sentence."""

    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Room:
    """A file system that may be full."""

    path: str
    size_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found about one mountpoint."""

    mountpoint: str
    row: MountRow | None
    answer: Answer | None = None
    connection: Connection | None = None
    processes: tuple[Process, ...] = ()
    hidden_processes: int = 0
    """Processes of some mount that we may not look into: another user's."""
    users: tuple[User, ...] | None = None
    store: StoreAnswer | None = None
    memory: tuple[MemoryLevel, ...] = ()
    rooms: tuple[Room, ...] = ()
    own_version: str = ""

    def of(self, role: str) -> list[Process]:
        """Its processes of one role."""
        return [process for process in self.processes if process.role == role]
