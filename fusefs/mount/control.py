"""What the mount answers about itself: the `user.fusefs.*` attributes.

Asked by getxattr on any file or directory of the mount, the one call that works through read-only
bind mounts, from any language, without a file or socket that could go stale. Unknown names are
ENODATA, never ENOSYS: one ENOSYS would switch attributes off for the whole connection.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fusefs
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache
from fusefs.engine.pool import Pool
from fusefs.engine.slots import Slots
from fusefs.hints.verbs import Verbs
from fusefs.mount.folder import HintFolder
from fusefs.mount.tuning import Knob, as_status
from fusefs.mount.vitals import Vitals
from fusefs.policy.budget import ArenaBudget
from fusefs.telemetry.counters import Counters
from fusefs.telemetry.log import RecentWarnings

STATUS_VERSION = 1

STATS_NAME = b"user.fusefs.stats"
SOCKET_NAME = b"user.fusefs.socket"


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The parts of the engine that tell of themselves."""

    budget: ArenaBudget
    pool: Pool
    slots: Slots
    pace: Pace
    pagecache: PageCache


class Status:
    """Puts the status together.

    The mutable state of Status is `knobs`, known once the kernel's were set, and `gauges`, asked of
    those that serve once there are any.
    """

    def __init__(
        self,
        job: dict[str, Any],
        engine: EngineParts,
        counters: Counters,
        warnings: RecentWarnings,
        vitals: Vitals,
    ) -> None:
        self._job = job
        self._engine = engine
        self._counters = counters
        self._warnings = warnings
        self._vitals = vitals
        self.started_ns = vitals.note().started_ns
        self._keeper_pid = os.getppid()
        self.knobs: dict[str, Knob] = {}
        self.gauges: list[Callable[[], dict[str, Any]]] = []

    def stats(self) -> bytes:
        """The answer to `user.fusefs.stats`: JSON, documented in docs/operations.md."""
        budget, pool = self._engine.budget, self._engine.pool
        note = self._vitals.note()
        answer = {
            "v": STATUS_VERSION,
            "version": fusefs.__version__,
            "source": self._job["source"],
            "mountpoint": self._job["mountpoint"],
            "uptime_s": round(time.monotonic() - note.started_s, 3),
            "pids": {
                "keeper": self._keeper_pid,
                "daemon": os.getpid(),
                "spawner": pool.spawner_pid,
                "workers": pool.pids,
                "pusher": self._engine.pagecache.pid,
            },
            "restarts": note.restarts,
            "last_end": note.last_end,
            "upgrades": {
                "done": note.upgrades,
                "refused": note.refused,
                "why_refused": note.why_refused,
            },
            "counters": self._counters.snapshot(),
            "arena": {
                "size_bytes": budget.size_bytes,
                "block_bytes": budget.block_size,
                **self._engine.slots.statistics(),
            },
            "fetching": self._engine.pace.statistics(),
            "memory_limit_bytes": budget.limit,
            "page_cache": self._engine.pagecache.statistics(),
            "checksums": self._checksums(),
            "kernel": as_status(self.knobs),
            "warnings": list(self._warnings.lines),
        }
        for gauge in self.gauges:
            answer |= gauge()
        return json.dumps(answer).encode()

    def _checksums(self) -> dict[str, str | None]:
        """Whether what arrives is compared with checksums, and why not, or not all of it."""
        mode = self._job["config"]["engine"]["checksums"]
        why = None
        if mode == "off":
            why = "engine.checksums is off"
        elif self._counters.checksums_missing_bytes:
            why = "some files have none: fusefs push notes them"
        return {"mode": mode, "why": why}


class Control:
    """All attributes, by name: the status, the verbs, and where the socket is."""

    def __init__(self, status: Status, verbs: Verbs, folder: HintFolder) -> None:
        self._status = status
        self._verbs = verbs
        self.folder = folder
        self.started_ns = status.started_ns

    async def answer(self, inode: int, name: bytes) -> bytes | None:
        """The value of the attribute `name`, or None if there is none. Raises FusefsError."""
        if name == STATS_NAME:
            return self._status.stats()
        if name == SOCKET_NAME:
            return json.dumps({"v": STATUS_VERSION, **self.folder.describe()}).encode()
        if self.folder.find(inode) is not None:
            return None
        return await self._verbs.answer(inode, name)
