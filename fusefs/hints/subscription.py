"""One plan of one peer: what it has been told, and what there is to tell.

Hears of ready bytes from the engine, keeps them merged, and turns them into events when the peer
takes some. The mutable state is bounded by the plan: an extent that is ready is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fusefs.engine.hinted import WarmPlan
from fusefs.errors import FusefsError
from fusefs.hints.wishes import code_of
from fusefs.policy.hinted import Pair, merged
from loaderhint import protocol

EXTENTS_PER_EVENT = 4096
"""Some 100 KiB: an event of a long plan is far shorter than a frame may be."""


class Subscription:
    """The listener of a plan, and the source of its events.

    The mutable state of Subscription is what was heard and not told yet, and what was told last.
    INVARIANT: `_ready` is empty until somebody subscribed.
    """

    def __init__(self, name: str, has_events: Callable[[Subscription], None]) -> None:
        self.name = name
        self._has_events = has_events
        self._plan: WarmPlan | None = None
        self._every_bytes = 0
        self._ready: dict[int, list[Pair]] = {}
        self._failed: list[tuple[int, FusefsError]] = []
        self._told_bytes = 0
        self._told_done = False

    def subscribe(self, plan: WarmPlan, every_bytes: int) -> None:
        """Tell from now on; first what is ready already. Once more is not told twice."""
        self._every_bytes = every_bytes
        if self._plan is None:
            self._plan = plan
            for part in plan.parts.values():
                extents = part.wanted.ready_extents()
                if extents:
                    self._ready[part.inode] = extents
                if part.error is not None:
                    self._failed.append((part.inode, part.error))
        self._has_events(self)

    def appended(self) -> None:
        """The plan was added to: it is done once more when all of that is there."""
        self._told_done = False
        if self._plan is not None:
            self._has_events(self)

    def ready(self, inode: int, extents: list[Pair]) -> None:
        """The engine: these bytes are there."""
        if self._plan is not None:
            self._ready.setdefault(inode, []).extend(extents)
            self._has_events(self)

    def failed(self, inode: int, error: FusefsError) -> None:
        """The engine: nothing more of this file comes."""
        if self._plan is not None:
            self._failed.append((inode, error))
            self._has_events(self)

    def events(self) -> Iterator[Mapping[str, Any]]:
        """What there is to say now; each thing once."""
        if self._plan is None:
            return
        ready, self._ready = self._ready, {}
        failed, self._failed = self._failed, []
        for inode, extents in ready.items():
            told = merged(extents)
            for at in range(0, len(told), EXTENTS_PER_EVENT):
                some = told[at : at + EXTENTS_PER_EVENT]
                yield {"ev": protocol.READY, "plan": self.name, "inode": inode, "extents": some}
        for inode, error in failed:
            yield {
                "ev": protocol.FAILED,
                "plan": self.name,
                "inode": inode,
                "code": code_of(error.errno),
                "message": str(error),
            }
        yield from self._progress(self._plan.ready_bytes, self._plan.total_bytes)

    def _progress(self, ready: int, total: int) -> Iterator[Mapping[str, Any]]:
        done = ready == total
        if ready - self._told_bytes >= self._every_bytes or (done and not self._told_done):
            self._told_bytes = ready
            figures = {"ready_bytes": ready, "total_bytes": total}
            yield {"ev": protocol.PROGRESS, "plan": self.name, **figures}
        if done and not self._told_done:
            yield {"ev": protocol.DONE, "plan": self.name}
        self._told_done = done
