"""Hints by extended attribute: `user.fusefs.prefetch` and its kin, asked with getxattr.

For shells and for any language, without a library. The one idea: a verb may come twice, since
getxattr asks for the size first and then for the value; so each says what shall be, not what to do
once more. A user who may not read the file is refused by the kernel before the verb comes here.
"""

from __future__ import annotations

import errno
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import trio

from fusefs.engine.blocks import FileTable, State
from fusefs.engine.hinted import HintedPlans, Plan, WarmPlan
from fusefs.errors import FusefsError, ObjectChanged
from fusefs.policy.hinted import Pair
from fusefs.policy.kinds import Kind, kind_of
from fusefs.policy.plan import Priority
from fusefs.tree.inodes import Entry
from fusefs.tree.tree import Tree

ANSWER_VERSION = 1

PREFETCH = b"user.fusefs.prefetch"
CANCEL = b"user.fusefs.cancel"
PROGRESS = b"user.fusefs.progress"

_EXTENT = re.compile(rb"user\.fusefs\.prefetch:(\d{1,19})-(\d{1,19})")

PLANS_MAX = 256
"""Plans of verbs kept at once: files and directories that somebody prefetched; the oldest goes."""

EXTENTS_MAX = 1000
"""Extents of one file's plan, by verbs. A loader with more of them has the socket."""

PLAN_TTL_S = 600.0
"""A plan nobody asked about for so long is given up: whoever made it has gone without a word."""

FILES_MAX = 10_000
"""Shards of one directory that are prefetched."""


class BadExtent(FusefsError):
    """The extent in the verb is not inside the file, or there are too many."""

    errno: ClassVar[int] = errno.EINVAL


class Verbs:
    """The plans made by verbs.

    The mutable state of Verbs is those plans by inode, asked about last at the end, with the time.
    """

    def __init__(self, tree: Tree, files: FileTable, hinted: HintedPlans) -> None:
        self._tree = tree
        self._files = files
        self._hinted = hinted
        self._plans: OrderedDict[int, tuple[WarmPlan, float]] = OrderedDict()

    async def answer(self, inode: int, name: bytes) -> bytes | None:
        """The value of the attribute; None if there is no such verb.

        Raises BadExtent, ObjectChanged, or what listing a directory raises.
        """
        self._drop_old()
        if name == PROGRESS:
            return _encode(self._progress(inode))
        if name == CANCEL:
            return _encode({"cancelled": self._cancel(inode)})
        found = _EXTENT.fullmatch(name)
        if name != PREFETCH and found is None:
            return None
        entry = self._tree.get(inode)
        if entry.meta is None:
            if found is not None:
                return None
            await self._prefetch_directory(entry)
        elif found is None:
            self._prefetch(entry, [(0, entry.meta.size)])
        else:
            self._prefetch(entry, [(int(found[1]), int(found[2]))])
        return _encode(self._progress(inode))

    # -- prefetch ---------------------------------------------------------------------------------

    def _prefetch(self, entry: Entry, extents: Sequence[Pair]) -> None:
        meta = entry.meta
        assert meta is not None
        if entry.stale:
            raise ObjectChanged(f"{entry.key} was replaced in the store")
        if any(not start <= stop <= meta.size for start, stop in extents):
            raise BadExtent(f"{entry.key}: an extent is START-STOP within the file")
        plan = self._plan(entry.inode, Priority.HINTED)
        part = self._hinted.part(plan, meta, entry.inode)
        if len(part.wanted.extents) >= EXTENTS_MAX:
            raise BadExtent(f"{entry.key}: more extents than {EXTENTS_MAX} by attributes")
        plan.want(part, extents)
        self._hinted.look_again()

    async def _prefetch_directory(self, directory: Entry) -> None:
        """The shards directly in it; where there are none, all that looks like weights."""
        entries = [e for e in await self._tree.listing(directory.inode) if e.meta is not None]
        shards = [entry for entry in entries if kind_of(entry.key) is Kind.SHARD]
        chosen = shards or [entry for entry in entries if kind_of(entry.key) is not Kind.OPAQUE]
        plan = self._plan(directory.inode, Priority.WARM)
        for entry in chosen[:FILES_MAX]:
            assert entry.meta is not None
            plan.want(self._hinted.part(plan, entry.meta, entry.inode), [(0, entry.meta.size)])
            await trio.lowlevel.checkpoint()  # a READ may come first
            if self._plans.get(directory.inode, (None,))[0] is not plan:
                return  # cancelled meanwhile
        self._hinted.look_again()

    def _plan(self, inode: int, priority: Priority) -> WarmPlan:
        known = self._plans.get(inode)
        if known is None:
            plan = WarmPlan(priority, in_order=True, listener=None)
            self._hinted.add(plan)
        else:
            plan = known[0]
        self._plans[inode] = plan, trio.current_time()
        self._plans.move_to_end(inode)
        if len(self._plans) > PLANS_MAX:
            self._cancel(next(iter(self._plans)))
        return plan

    def _cancel(self, inode: int) -> bool:
        known = self._plans.pop(inode, None)
        if known is None:
            return False
        self._hinted.remove(known[0])
        return True

    def _drop_old(self) -> None:
        before = trio.current_time() - PLAN_TTL_S
        while self._plans:
            inode, (_, asked_s) = next(iter(self._plans.items()))
            if asked_s > before:
                return
            self._cancel(inode)

    # -- progress ---------------------------------------------------------------------------------

    def _progress(self, inode: int) -> dict[str, Any]:
        """Of the plan made by verbs; without one, what is here of the file, whoever fetched it."""
        known = self._plans.get(inode)
        if known is not None:
            plan = known[0]
            self._plans[inode] = plan, trio.current_time()
            self._plans.move_to_end(inode)
            return {"planned": True, **progress_of(plan)}
        meta = self._tree.get(inode).meta
        if meta is None:
            return {"planned": False, "ready_bytes": 0, "total_bytes": 0, "failed": []}
        file = self._files.get(meta)
        ready = file.plan.consumed.count() * file.plan.block_size
        for block in file.blocks.values():
            if block.state is State.READY and block.index not in file.plan.consumed:
                ready += block.extent.size
        self._files.drop_if_unused(file)
        return {
            "planned": False,
            "ready_bytes": min(ready, meta.size),  # the last block is a short one
            "total_bytes": meta.size,
            "failed": [],
        }


def progress_of(plan: WarmPlan) -> dict[str, Any]:
    """How far a plan is: bytes, and up to ten of its failures."""
    failed = [part for part in plan.parts.values() if part.error is not None]
    ready = plan.ready_bytes
    return {
        "ready_bytes": ready,
        "total_bytes": plan.total_bytes,
        "in_flight": in_flight_bytes(plan),
        "bytes_per_s": plan.rate.measure(ready),
        "failed": [f"{part.file.meta.id.key}: {part.error}"[:400] for part in failed[:10]],
    }


def in_flight_bytes(plan: Plan) -> int:
    """How many bytes are in the plan's blocks that are on their way."""
    return sum(
        block.extent.size
        for part in plan.parts.values()
        for block in part.file.blocks.values()
        if block.state is not State.READY and part.wanted.marks[block.index]
    )


def _encode(answer: dict[str, Any]) -> bytes:
    return json.dumps({"v": ANSWER_VERSION, **answer}).encode()
