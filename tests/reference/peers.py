"""A peer of the hints' socket, without the socket: real plans, subscriptions, slots and pins.

What it is told is believed and looked at: a slot holds exactly the bytes it is said to hold, when
it is told of and until it is given back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import trio

from fusefs.hints.duty import Duty
from fusefs.hints.outbox import Outbox, Source
from fusefs.hints.plans import Engine as HintEngine
from fusefs.hints.plans import PeerPlans
from fusefs.hints.wishes import SLOTS, Refused, plan_wish, wait_wish
from loaderhint import protocol
from tests.engine.simulated import BLOCK

MAY_BE_REFUSED = frozenset({"ESTALE", "ENOENT", "EIO", "ETIMEDOUT", "ECANCELED"})
"""A file that changed or was closed, a store that fails, a plan that is not there."""

Content = Callable[[int], bytes]
"""The bytes of a file, by inode."""


class Told:
    """Takes an outbox's place: who has events, in order."""

    def __init__(self) -> None:
        self.sources: dict[int, Source] = {}

    def has_events(self, source: Source) -> None:
        """See `Outbox`."""
        self.sources[id(source)] = source

    def forget(self, source: Source) -> None:
        """See `Outbox`."""
        self.sources.pop(id(source), None)


@dataclass(frozen=True, slots=True)
class Held:
    """A slot the peer was told of, and what must lie there."""

    plan: str
    inode: int
    start: int
    size: int
    at: int


class SimulatedPeer:
    """One connection.

    The mutable state of SimulatedPeer is its plans, the slots it holds, and what each plan is done
    with: the files that failed, and whether all of it came.
    """

    def __init__(self, engine: HintEngine, content: Content) -> None:
        self._engine = engine
        self._content = content
        self._told = Told()
        self._plans = self._connect()
        self._asked: dict[str, Any] = {}
        self.busy = trio.Lock()
        """Requests come one after the other, but for waits."""
        self.held: list[Held] = []
        self.open_plans: set[str] = set()
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def _connect(self) -> PeerPlans:
        return PeerPlans(self._engine, cast(Outbox, self._told), Duty(), lambda: ["/"])

    async def hint(self, mode: str, inode: int, start: int, stop: int, append: bool) -> None:
        """Ask for an extent of a file, and to be told of it."""
        wish = {"inode": inode, "extents": [[start, stop]]}
        message: dict[str, Any] = {"plan": mode, "mode": mode, "files": [wish], "append": append}
        if mode == SLOTS and not append and self._asked != message:
            self.held = [held for held in self.held if held.plan != mode]  # a replaced plan's
        try:
            await self._plans.plan(plan_wish(message), message)
            self._asked = message if mode == SLOTS and not append else self._asked
            self.open_plans.add(mode)
            self.done.discard(mode)
            if mode == SLOTS:
                _, fd = self._plans.map({"plan": mode})
                os.close(fd)
            else:
                self._plans.subscribe({"plan": mode, "every_bytes": 1})
        except Refused as refused:
            if refused.code not in MAY_BE_REFUSED:
                raise AssertionError(f"the plan was refused: {refused.code}") from refused

    async def wait(self, mode: str, inode: int, block: int) -> None:
        """Wait for a block; an answer or a documented error, within a second."""
        start = block * BLOCK
        fields = {"inode": inode, "start": start, "stop": start + 1, "timeout_ms": 1000}
        try:
            await self._plans.wait(wait_wish({"plan": mode, **fields}))
        except Refused as refused:
            beyond = refused.code == "EINVAL"  # the file is shorter than that
            if not beyond and refused.code not in MAY_BE_REFUSED:
                raise AssertionError(f"the wait was refused: {refused.code}") from refused

    def take(self) -> None:
        """Hear all there is to hear."""
        while self._told.sources:
            _, source = self._told.sources.popitem()
            for event in source.events():
                self._heard(dict(event))

    def give_back(self, count: int) -> None:
        """Release the slots held for longest, having looked at them once more."""
        for held in self.held[:count]:
            self._check(held)
            self._plans.release({"plan": held.plan, "slots": [held.at]})
        del self.held[:count]

    def leave(self) -> None:
        """Hang up; the next request comes on a new connection."""
        for held in self.held:
            self._check(held)
        self.held.clear()
        self.open_plans.clear()
        self._asked = {}
        self._plans.close()
        self._told.sources.clear()
        self._plans = self._connect()

    def _heard(self, event: dict[str, Any]) -> None:
        match event["ev"]:
            case protocol.SLOT:
                fields = ("plan", "inode", "start", "size", "at")
                held = Held(*(event[name] for name in fields))
                self._check(held)
                self.held.append(held)
            case protocol.READY:
                size = len(self._content(event["inode"]))
                for start, stop in event["extents"]:
                    assert 0 <= start < stop <= size, f"ready: [{start}, {stop}) of {size}"
            case protocol.DONE:
                self.done.add(event["plan"])
            case protocol.FAILED:
                self.failed.add(event["plan"])

    def _check(self, held: Held) -> None:
        want = self._content(held.inode)[held.start : held.start + held.size]
        got = bytes(self._engine.arena.view(0, held.at, held.size))
        assert len(want) == held.size, f"a slot beyond the end: {held}"
        assert got == want, f"other bytes in the slot {held}"
