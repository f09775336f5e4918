"""The plans of one connection: what its requests do in the engine.

Answers requests that were checked already (`hints.wishes`) and knows nothing of frames. The one
idea: a peer names files by inode, and an inode that it could not open is one that does not exist.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from fusefs.engine.blocks import State
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.hinted import HintedPlans, Part, WarmPlan
from fusefs.errors import FusefsError, ObjectChanged
from fusefs.hints.duty import Duty
from fusefs.hints.outbox import Outbox
from fusefs.hints.subscription import Subscription
from fusefs.hints.verbs import in_flight_bytes
from fusefs.hints.visible import is_visible
from fusefs.hints.wishes import FileWish, PlanWish, Refused, WaitWish, every_bytes, plan_name
from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of
from fusefs.policy.hinted import merged
from fusefs.tree.inodes import Entry
from fusefs.tree.tree import Tree
from loaderhint import protocol

BLOCKS_MAX = 4 << 20
"""In all plans of one connection: a byte for each, and 4 TiB of weights."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the plans of all connections work with. `waits` bounds the blocks they wait for."""

    tree: Tree
    prefix: str
    hinted: HintedPlans
    fetcher: Fetcher
    waits: trio.CapacityLimiter


@dataclass(slots=True)
class _Kept:
    """One plan, who listens to it, and what it was first asked for."""

    plan: WarmPlan
    subscription: Subscription
    asked: bytes


class PeerPlans:
    """One connection's plans.

    The mutable state of PeerPlans is the plans by name, and their extents and blocks together.
    INVARIANT: every plan in it is one of HintedPlans', until `close`.
    """

    def __init__(
        self, engine: Engine, outbox: Outbox, duty: Duty, roots: Callable[[], list[str] | None]
    ) -> None:
        self._engine = engine
        self._outbox = outbox
        self._duty = duty
        self._roots = roots
        self._plans: dict[str, _Kept] = {}

    async def plan(self, wish: PlanWish, message: Mapping[str, Any]) -> dict[str, Any]:
        """Make a plan, or add to it. The same again changes nothing. Raises Refused."""
        asked = hashlib.blake2b(json.dumps(message["files"]).encode()).digest()
        kept = self._plans.get(wish.name)
        if kept is not None and not wish.append:
            if kept.asked != asked:
                raise Refused(errno.EEXIST, "there is a plan of this name: cancel it, or append")
            return self._figures(wish.name)
        wanted = self._resolve(wish)
        if kept is None:
            kept = self._make(wish, asked)
        for entry, file in wanted:
            with self._duty.working():
                self._want(kept.plan, entry, file)
            await trio.lowlevel.checkpoint()  # READs come first
            if self._plans.get(wish.name) is not kept:
                raise Refused(errno.ECANCELED, "the plan was cancelled")
        kept.subscription.appended()
        self._engine.hinted.look_again()
        return self._figures(wish.name)

    def subscribe(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Tell of a plan's bytes from now on. Raises Refused."""
        kept = self._find(plan_name(message))
        kept.subscription.subscribe(kept.plan, every_bytes(message))
        return {}

    def cancel(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Fetch nothing more for a plan, and forget it. Raises Refused."""
        name = plan_name(message)
        self._find(name)
        self._drop(name)
        return {}

    def progress(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """How far a plan is. Raises Refused."""
        name = plan_name(message)
        plan = self._find(name).plan
        ready = plan.ready_bytes
        return {
            "ready_bytes": ready,
            "total_bytes": plan.total_bytes,
            "in_flight": sum(in_flight_bytes(plan)),
            "bytes_per_s": plan.rate.measure(ready),
        }

    async def wait(self, wish: WaitWish) -> dict[str, Any]:
        """Return once these bytes are there; they come before all that nobody waits for.

        Raises Refused: ETIMEDOUT, ESTALE, or what the store said.
        """
        plan = self._find(wish.name).plan
        part = plan.parts.get(wish.inode)
        if part is None:
            raise Refused(errno.ENOENT, "the plan has no file of this inode")
        if wish.stop > part.file.meta.size:
            raise Refused(errno.EINVAL, "the extent ends beyond the end of the file")
        if wish.start == wish.stop:
            return {}
        indices = blocks_of(Extent(wish.start, wish.stop), part.file.plan.block_size)
        plan.want_first(part, indices.start, indices.stop)
        self._engine.hinted.look_again()
        try:
            with trio.move_on_after(wish.timeout_s) as scope:
                for index in indices:
                    await self._wait_for(part, index)
        except FusefsError as error:
            raise Refused(error.errno, str(error)) from error
        if scope.cancelled_caught:
            raise Refused(errno.ETIMEDOUT, f"not there within {wish.timeout_s:g} s")
        return {}

    def close(self) -> None:
        """The connection is gone: cancel everything."""
        for name in list(self._plans):
            self._drop(name)

    # -- steps ------------------------------------------------------------------------------------

    def _make(self, wish: PlanWish, asked: bytes) -> _Kept:
        if len(self._plans) >= protocol.PLANS_MAX:
            raise Refused(errno.ENOSPC, f"more plans than {protocol.PLANS_MAX}")
        subscription = Subscription(wish.name, self._outbox.has_events)
        plan = WarmPlan(wish.priority, wish.in_order, subscription)
        kept = self._plans[wish.name] = _Kept(plan, subscription, asked)
        self._engine.hinted.add(plan)
        return kept

    def _resolve(self, wish: PlanWish) -> list[tuple[Entry, FileWish]]:
        """All files of a wish, or Refused and nothing was done."""
        roots = self._roots()
        wanted = [(self._entry(file, roots), file) for file in wish.files]
        extents, blocks = 0, 0
        for kept in self._plans.values():
            for part in kept.plan.parts.values():
                extents += len(part.wanted.extents)
                blocks += len(part.wanted.marks)
        block_size = self._engine.hinted.block_size
        for entry, file in wanted:
            assert entry.meta is not None
            size = entry.meta.size
            if any(stop > size for _, stop in file.extents or ()):
                raise Refused(errno.EINVAL, "an extent ends beyond the end of the file")
            extents += 1 if file.extents is None else len(merged(file.extents))
            blocks += size // block_size + 1
        if extents > protocol.EXTENTS_MAX:
            raise Refused(errno.ENOSPC, f"more extents than {protocol.EXTENTS_MAX} in all plans")
        if blocks > BLOCKS_MAX:
            raise Refused(errno.ENOSPC, f"files of more than {BLOCKS_MAX} blocks in all plans")
        return wanted

    def _entry(self, file: FileWish, roots: list[str] | None) -> Entry:
        try:
            entry = self._engine.tree.get(file.inode)
        except ObjectChanged as error:
            raise Refused(errno.ENOENT, f"no file has the inode {file.inode}") from error
        path = entry.key[len(self._engine.prefix) :]
        if entry.meta is None or (roots is not None and not is_visible(path, roots)):
            raise Refused(errno.ENOENT, f"no file has the inode {file.inode}")
        if entry.stale or file.etag not in (None, entry.meta.id.etag):
            raise Refused(errno.ESTALE, "the file is of another version")
        return entry

    def _want(self, plan: WarmPlan, entry: Entry, file: FileWish) -> None:
        assert entry.meta is not None
        part = self._engine.hinted.part(plan, entry.meta, entry.inode)
        plan.want(part, [(0, entry.meta.size)] if file.extents is None else file.extents)

    async def _wait_for(self, part: Part, index: int) -> None:
        file = part.file
        block = file.blocks.get(index)
        if index in file.plan.consumed or (block is not None and block.state is State.READY):
            return
        if file.changed is not None:
            raise file.changed
        async with self._engine.waits:
            blocks, _ = self._engine.fetcher.demand(file, range(index, index + 1))
            try:
                await blocks[0].wait_settled()
                if blocks[0].error is not None:
                    raise blocks[0].error
            finally:
                self._engine.fetcher.release(blocks)

    def _find(self, name: str) -> _Kept:
        kept = self._plans.get(name)
        if kept is None:
            raise Refused(errno.ENOENT, "there is no plan of this name")
        return kept

    def _drop(self, name: str) -> None:
        kept = self._plans.pop(name)
        self._outbox.forget(kept.subscription)
        self._engine.hinted.remove(kept.plan)

    def _figures(self, name: str) -> dict[str, Any]:
        plan = self._plans[name].plan
        return {"plan": name, "total_bytes": plan.total_bytes, "ready_bytes": plan.ready_bytes}
