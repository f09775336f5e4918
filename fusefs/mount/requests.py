"""The kernel's requests that are being answered: how many, the oldest, and those that are stuck.

It ends nothing. Each wait inside a request has a deadline of its own, so a request that outlives
all of them is a defect of ours: it is logged once, with what it waits for, and counted. The one
idea: requests are kept in the order of their coming, so the oldest is always the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from fusefs.engine.blocks import File
from fusefs.engine.guide import NAMES_DEADLINE_S
from fusefs.errors import ObjectChanged
from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of
from fusefs.telemetry.counters import Counters
from fusefs.tree.listings import LISTING_DEADLINE_S
from fusefs.tree.tree import Tree

log = logging.getLogger("fusefs.requests")

SLACK_S = 30.0
"""Beyond the deadline: what a machine may take that is busy with other things."""

LOOK_EVERY_S = 5.0
"""A stuck request is minutes old when it is noticed; a look costs microseconds."""

LATE_S = 1.0
"""A look that comes later than this says that the whole process stood still."""

WORTH_TELLING_S = 1.0
"""Younger ones are no news; the question for the status itself is one of them."""

Describe = Callable[[str, tuple[Any, ...]], str]
"""Says of a handler's name and arguments what the request is and what it waits for."""


@dataclass(slots=True)
class _Request:
    """One request under way."""

    handler: str
    arguments: tuple[Any, ...]
    since_s: float
    told: bool = False


class Requests:
    """The requests of one mount.

    The mutable state of Requests is those under way, oldest first, and the number of the next.
    """

    def __init__(self, counters: Counters, read_deadline_s: float) -> None:
        self._counters = counters
        whole_listing_s = NAMES_DEADLINE_S + LISTING_DEADLINE_S
        self._deadlines: Mapping[str, float] = {
            "read": read_deadline_s,
            # The first page of the directory, then the name itself.
            "lookup": 2 * NAMES_DEADLINE_S,
            "opendir": whole_listing_s,
            "getxattr": whole_listing_s,
        }
        self._under_way: dict[int, _Request] = {}
        self._next = 0

    def began(self, handler: str, arguments: tuple[Any, ...]) -> int:
        """Note a request; returns its number."""
        self._next += 1
        self._under_way[self._next] = _Request(handler, arguments, trio.current_time())
        return self._next

    def ended(self, number: int) -> None:
        """It was answered."""
        del self._under_way[number]

    def count_under_way(self) -> int:
        """How many are in our hands now."""
        return len(self._under_way)

    def statistics(self, describe: Describe) -> dict[str, Any]:
        """For the status answer: `oldest` is null unless it is older than a second."""
        request = next(iter(self._under_way.values()), None)
        age_s = trio.current_time() - request.since_s if request is not None else 0.0
        told = request is not None and age_s > WORTH_TELLING_S
        return {
            "under_way": len(self._under_way),
            "oldest_s": round(age_s, 1) if told else 0.0,
            "oldest": describe(request.handler, request.arguments) if request and told else None,
        }

    async def run(self, describe: Describe) -> None:
        """Look for stuck requests, for ever."""
        while True:
            due_s = trio.current_time() + LOOK_EVERY_S
            await trio.sleep_until(due_s)
            now = trio.current_time()
            if now - due_s < LATE_S:  # else they had no chance to notice their deadlines
                self._look(now, describe)

    def _look(self, now: float, describe: Describe) -> None:
        for request in self._under_way.values():
            age_s = now - request.since_s
            if age_s <= SLACK_S:
                return  # so are all that came later
            if request.told or age_s <= self._deadlines.get(request.handler, 0.0) + SLACK_S:
                continue
            request.told = True
            self._counters.requests_stuck += 1
            log.error(
                "a request is stuck for %.0f s, past every deadline: %s",
                age_s, describe(request.handler, request.arguments),
            )  # fmt: skip


def describe_read(file: File, start: int, size: int) -> str:
    """A READ, and how far its blocks are."""
    states: dict[str, int] = {}
    for index in blocks_of(Extent(start, start + size), file.plan.block_size):
        block = file.blocks.get(index)
        word = "not asked for" if block is None else block.state.value
        states[word] = states.get(word, 0) + 1
    blocks = ", ".join(f"{count} {word}" for word, count in states.items())
    return f"READ of {file.meta.id.key} [{start}, {start + size}), blocks: {blocks}"


def describe_names(handler: str, arguments: tuple[Any, ...], tree: Tree) -> str:
    """Any other request: of which name, in what."""
    inode, name = arguments[0], arguments[1] if len(arguments) > 1 else None
    try:
        key = tree.get(inode).key or "/"
    except (ObjectChanged, TypeError):  # forgotten meanwhile; or FORGET, which has a list of them
        key = "an unknown inode"
    of = f" of {name.decode(errors='replace')!r}" if isinstance(name, bytes) else ""
    return f"{handler.upper()}{of} in {key}"
