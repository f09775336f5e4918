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

from fusefs.engine.arena import Arena
from fusefs.engine.blocks import State
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.handed import Groups, Pins, SlotPlan
from fusefs.engine.hinted import HintedPlans, Part, WarmPlan
from fusefs.errors import FusefsError, ObjectChanged
from fusefs.hints.duty import Duty
from fusefs.hints.outbox import Outbox
from fusefs.hints.subscription import Subscription
from fusefs.hints.verbs import in_flight_bytes
from fusefs.hints.visible import is_visible
from fusefs.hints.wishes import (
    WARM,
    FileWish,
    Group,
    PlanWish,
    Refused,
    WaitWish,
    every_bytes,
    plan_name,
    released_slots,
)
from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of
from fusefs.policy.hinted import merged
from fusefs.tree.inodes import Entry
from fusefs.tree.tree import Tree
from loaderhint import protocol

ALL_PLANS_MAX = 512
"""Of all connections and verbs: a READ of a file is told to each plan for it, in 1 us."""

BLOCKS_MAX = 4 << 20
"""In all plans of one connection: a byte for each, and 4 TiB of weights."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the plans of all connections work with.

    `waits` bounds the blocks that they wait for, `pins` those that they hold.
    """

    tree: Tree
    prefix: str
    hinted: HintedPlans
    fetcher: Fetcher
    arena: Arena
    waits: trio.CapacityLimiter
    pins: Pins
    groups: Groups


@dataclass(slots=True)
class _Kept:
    """One plan, who listens to it, and what it was first asked for."""

    plan: WarmPlan | SlotPlan
    subscription: Subscription
    asked: bytes
    group: Group | None


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
        """Make a plan, add to it, or replace it. The same again changes nothing. Raises Refused."""
        with self._duty.working():
            text = json.dumps({**message, "id": None}, sort_keys=True)
            asked = hashlib.blake2b(text.encode()).digest()
            kept = self._plans.get(wish.name)
            if kept is not None and not wish.append:
                if kept.asked == asked:
                    return self._figures(wish.name)
                wanted = self._resolve(wish, besides=wish.name)
                self._drop(wish.name)
                kept = None
            else:
                wanted = self._resolve(wish)
        await trio.lowlevel.checkpoint()
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
            "in_flight": in_flight_bytes(plan),
            "bytes_per_s": plan.rate.measure(ready),
        }

    async def wait(self, wish: WaitWish) -> dict[str, Any]:
        """Return once these bytes are there; they come before all that nobody waits for.

        Raises Refused: ETIMEDOUT, ESTALE, or what the store said.
        """
        kept = self._find(wish.name)
        plan = kept.plan
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
                    if self._plans.get(wish.name) is not kept:
                        raise Refused(errno.ECANCELED, "the plan was cancelled")
                    await self._wait_for(part, index, isinstance(plan, SlotPlan))
        except FusefsError as error:
            raise Refused(error.errno, str(error)) from error
        if scope.cancelled_caught:
            raise Refused(errno.ETIMEDOUT, f"not there within {wish.timeout_s:g} s")
        return {}

    def why_no_slots(self) -> str | None:
        """Why this peer gets no slots; None if it may. The arena holds bytes of all files."""
        if not self._engine.arena.may_be_handed_out:
            return "the arena cannot be handed out here: it takes root and Linux 6.15"
        roots = self._roots()
        if roots is None or "/" not in roots:
            return "slots are for those who can see the whole mount, by their own mount table"
        return None

    def map(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Begin to hand out the slots of a plan; with a descriptor of the arena. Raises Refused."""
        kept = self._find(plan_name(message))
        if not isinstance(kept.plan, SlotPlan):
            raise Refused(errno.EINVAL, "the plan is not of mode slots")
        why = self.why_no_slots()
        if why is not None:
            raise Refused(errno.EACCES, why)
        arena = self._engine.arena
        try:
            fd = arena.open_read_only()
        except OSError as error:
            raise Refused(errno.EACCES, f"the arena cannot be opened: {error}") from error
        kept.subscription.subscribe(kept.plan, kept.subscription.every_bytes)
        kept.plan.start()
        self._engine.hinted.look_again()
        return {"slot_bytes": arena.block_size, "size_bytes": arena.budget.size_bytes}, fd

    def release(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Let go of slots. Raises Refused if one of them is not the peer's; the others are free."""
        kept = self._find(plan_name(message))
        if not isinstance(kept.plan, SlotPlan):
            raise Refused(errno.EINVAL, "the plan is not of mode slots")
        blocks, unknown = kept.subscription.released(released_slots(message))
        kept.plan.release(blocks)
        if unknown:
            raise Refused(errno.EINVAL, f"no slot of the plan begins at {unknown[0]}")
        return {}

    def close(self) -> None:
        """The connection is gone: cancel everything."""
        for name in list(self._plans):
            self._drop(name)

    # -- steps ------------------------------------------------------------------------------------

    def _make(self, wish: PlanWish, asked: bytes) -> _Kept:
        if len(self._plans) >= protocol.PLANS_MAX:
            raise Refused(errno.ENOSPC, f"more plans than {protocol.PLANS_MAX}")
        if len(self._engine.hinted) >= ALL_PLANS_MAX:
            raise Refused(errno.ENOSPC, f"more plans than {ALL_PLANS_MAX} of all connections")
        engine = self._engine
        subscription = Subscription(wish.name, self._outbox.has_events)
        plan: WarmPlan | SlotPlan
        group = None
        if wish.mode == WARM:
            plan = WarmPlan(wish.priority, wish.in_order, subscription)
        else:
            why = self.why_no_slots()
            if why is not None:
                raise Refused(errno.EACCES, why)
            window = engine.pins.window_of(wish.window_bytes)
            handed_on = engine.hinted.handed_on
            plan = SlotPlan(
                wish.priority, wish.in_order, subscription, engine.pins, window, handed_on
            )
            if wish.group is not None:
                group = wish.group
                try:
                    plan.group = engine.groups.join(group.id, group.rank, group.size)
                except ValueError as error:
                    raise Refused(errno.EINVAL, str(error)) from error
        kept = self._plans[wish.name] = _Kept(plan, subscription, asked, group)
        engine.hinted.add(plan)
        return kept

    def _resolve(self, wish: PlanWish, besides: str | None = None) -> list[tuple[Entry, FileWish]]:
        """All files of a wish, or Refused and nothing was done. Limits leave out `besides`."""
        roots = self._roots()
        wanted = [(self._entry(file, roots), file) for file in wish.files]
        extents, blocks = 0, 0
        for name, kept in self._plans.items():
            for part in () if name == besides else kept.plan.parts.values():
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

    def _want(self, plan: WarmPlan | SlotPlan, entry: Entry, file: FileWish) -> None:
        assert entry.meta is not None
        part = self._engine.hinted.part(plan, entry.meta, entry.inode)
        plan.want(part, [(0, entry.meta.size)] if file.extents is None else file.extents)

    async def _wait_for(self, part: Part, index: int, in_arena: bool) -> None:
        file = part.file
        block = file.blocks.get(index)
        if block is not None and block.state is State.READY:
            return
        if index in file.plan.consumed and not in_arena:
            return  # the page cache has it
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
        if isinstance(kept.plan, SlotPlan):
            kept.plan.close()
        if kept.group is not None:
            self._engine.groups.leave(kept.group.id, kept.group.rank)
        self._engine.hinted.remove(kept.plan)

    def _figures(self, name: str) -> dict[str, Any]:
        plan = self._plans[name].plan
        return {"plan": name, "total_bytes": plan.total_bytes, "ready_bytes": plan.ready_bytes}
