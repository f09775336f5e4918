"""One plan of one peer: what it has been told, and what there is to tell.

Hears of ready bytes, or of slots, from the engine, keeps them merged, and turns them into events
when the peer takes some. What is kept is bounded by the plan: an extent that is ready is told once,
and there are no more slots than the window holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fusefs.engine.handed import SlotPlan
from fusefs.engine.hinted import WarmPlan
from fusefs.errors import FusefsError
from fusefs.hints.wishes import EVERY_BYTES_DEFAULT, code_of
from fusefs.policy.hinted import Pair, merged
from loaderhint import protocol

EXTENTS_PER_EVENT = 4096
"""Some 100 KiB: an event of a long plan is far shorter than a frame may be."""


@dataclass(slots=True)
class _Slot:
    """Bytes of a file that lie in the arena, in neighbouring `blocks`."""

    inode: int
    start: int
    size: int
    at: int
    blocks: list[int]

    def joins(self, other: _Slot, blocks_max: int) -> bool:
        """Take in a slot that lies right behind, in the file and in the arena; whether it did."""
        if len(self.blocks) >= blocks_max or other.inode != self.inode:
            return False
        if (other.start, other.at) != (self.start + self.size, self.at + self.size):
            return False
        self.size += other.size
        self.blocks += other.blocks
        return True


class Subscription:
    """The listener of a plan, and the source of its events.

    The mutable state of Subscription is what was heard and not told yet, what was told last, and
    the slots that were told: the places of their blocks, by the place of the first.
    INVARIANT: `_ready` is empty until somebody subscribed.
    """

    def __init__(self, name: str, has_events: Callable[[Subscription], None]) -> None:
        self.name = name
        self._has_events = has_events
        self._plan: WarmPlan | SlotPlan | None = None
        self.every_bytes = EVERY_BYTES_DEFAULT
        self._ready: dict[int, list[Pair]] = {}
        self._failed: list[tuple[int, FusefsError]] = []
        self._handed: list[_Slot] = []
        self._told_slots: dict[int, list[list[int]]] = {}
        self._told_bytes = 0
        self._told_done = False

    def subscribe(self, plan: WarmPlan | SlotPlan, every_bytes: int) -> None:
        """Tell from now on; first what is ready already. Once more is not told twice."""
        self.every_bytes = every_bytes
        if self._plan is None:
            self._plan = plan
            for part in plan.parts.values():
                extents = part.wanted.ready_extents()
                if extents and isinstance(plan, WarmPlan):
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

    def handed(self, inode: int, start: int, size: int, at: int) -> None:
        """The engine: these bytes lie there until they are released."""
        self._handed.append(_Slot(inode, start, size, at, [at]))
        self._has_events(self)

    def released(self, places: list[int]) -> tuple[list[int], list[int]]:
        """Where the blocks lie of slots that were told; and what of `places` is none."""
        blocks, unknown = [], []
        for at in places:
            told = self._told_slots.get(at)
            if told is None:
                unknown.append(at)
                continue
            blocks += told.pop()
            if not told:
                del self._told_slots[at]
        return blocks, unknown

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
        if isinstance(self._plan, SlotPlan):
            yield from self._slots(self._plan.batch)
        yield from self._progress(self._plan.ready_bytes, self._plan.total_bytes)

    def _slots(self, blocks_max: int) -> Iterator[Mapping[str, Any]]:
        """Neighbours in file and arena are one slot, of at most `blocks_max` blocks."""
        handed, self._handed = self._handed, []
        slots: list[_Slot] = []
        for slot in handed:
            if not slots or not slots[-1].joins(slot, blocks_max):
                slots.append(slot)
        for slot in slots:
            self._told_slots.setdefault(slot.at, []).append(slot.blocks)
            yield {
                "ev": protocol.SLOT,
                "plan": self.name,
                "inode": slot.inode,
                "start": slot.start,
                "size": slot.size,
                "at": slot.at,
            }

    def _progress(self, ready: int, total: int) -> Iterator[Mapping[str, Any]]:
        done = ready == total
        if ready - self._told_bytes >= self.every_bytes or (done and not self._told_done):
            self._told_bytes = ready
            figures = {"ready_bytes": ready, "total_bytes": total}
            yield {"ev": protocol.PROGRESS, "plan": self.name, **figures}
        if done and not self._told_done:
            yield {"ev": protocol.DONE, "plan": self.name}
        self._told_done = done
