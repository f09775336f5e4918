"""Plans whose bytes are taken out of the arena itself, without a copy of ours or a READ.

A block that has landed is pinned for the peer until it says that it is done with it. The one idea:
the window. A plan has at most so many blocks on their way or pinned, so a peer that takes nothing,
or gives nothing back, stops its own plan; and all plans together pin at most half of the slots, so
demand always finds room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from fusefs.engine.blocks import Block, State
from fusefs.engine.hinted import FileRun, Part, Rate
from fusefs.errors import FusefsError
from fusefs.policy.budget import ArenaBudget
from fusefs.policy.hinted import UNWANTED, WANTED, Pair
from fusefs.policy.plan import Priority

PINNED_FRACTION = 2
"""Of the slots, for all plans together. Waiting READs pin a quarter of the slots twice at most."""

WINDOW_FRACTION = 4
"""Of the slots, for one plan that does not say; two of them can run at full speed."""

BATCH_FRACTION = 4
"""The window moves on in steps of a quarter, or of one range: else each block that is given back
would cost a request of its own."""

GROUP_TTL_S = 10.0
"""Ranks of a group start within seconds of each other; one that has not come by then is not waited
for. It fetches again what is gone."""


class Taker(Protocol):
    """Who takes the blocks. Is told within the engine's own steps: takes note, and no time."""

    def handed(self, inode: int, start: int, size: int, at: int) -> None:
        """Bytes `[start, start + size)` of the file lie at `at` of the arena, until released."""

    def failed(self, inode: int, error: FusefsError) -> None:
        """Nothing more of this file comes."""


class Pins:
    """The blocks that peers hold.

    The mutable state of Pins is how often each is held.
    INVARIANT: a held block has one waiter for it; there are at most `limit` of them.
    """

    def __init__(self, budget: ArenaBudget) -> None:
        self.block_size = budget.block_size
        self.limit = max(1, budget.slots // PINNED_FRACTION)
        self._window = max(1, budget.slots // WINDOW_FRACTION)
        self._range_blocks = budget.range_blocks
        self._held: dict[Block, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def window_of(self, wanted_bytes: int | None) -> int:
        """How many blocks a plan may have, of what it asks for."""
        if wanted_bytes is None:
            return self._window
        return max(1, min(wanted_bytes // self.block_size, self.limit))

    def batch(self, window: int) -> int:
        """In steps of how many blocks a window moves on."""
        return max(1, min(self._range_blocks, window // BATCH_FRACTION))

    def pin(self, block: Block) -> bool:
        """Hold a READY block, once more if it is held; False if too many are."""
        count = self._held.get(block, 0)
        if not count:
            if len(self._held) >= self.limit:
                return False
            block.waiters += 1
        self._held[block] = count + 1
        return True

    def unpin(self, block: Block) -> None:
        """The end of one `pin`."""
        self._held[block] -= 1
        if not self._held[block]:
            del self._held[block]
            block.waiters -= 1


@dataclass(slots=True)
class GroupMembers:
    """The ranks of one job that have come, of `size`; blocks are kept for those that have not."""

    size: int
    born_s: float
    ranks: dict[int, int] = field(default_factory=dict)

    def is_expecting(self) -> bool:
        """Whether a rank may still come for what the others are done with."""
        return len(self.ranks) < self.size and trio.current_time() < self.born_s + GROUP_TTL_S


class Groups:
    """The groups of one mount. The mutable state of Groups is those that have a plan, by id."""

    def __init__(self) -> None:
        self._groups: dict[str, GroupMembers] = {}

    def join(self, id: str, rank: int, size: int) -> GroupMembers:
        """One plan more of this rank. Raises ValueError if the group has another size."""
        group = self._groups.setdefault(id, GroupMembers(size, trio.current_time()))
        if group.size != size:
            raise ValueError(f"the group has {group.size} ranks, not {size}")
        group.ranks[rank] = group.ranks.get(rank, 0) + 1
        return group

    def leave(self, id: str, rank: int) -> None:
        """The end of one `join`. A rank that came and went has had what it wanted."""
        ranks = self._groups[id].ranks
        ranks[rank] -= 1
        if not any(ranks.values()):
            del self._groups[id]


class SlotPlan:
    """A plan whose blocks are handed out.

    The mutable state of SlotPlan is its parts, the blocks on their way to it, those it could not
    pin yet, and those it holds, by their place in the arena.
    INVARIANT: blocks on their way and held ones together are at most `window`; the former are
    WANTED, the latter READY by their marks, unless they were asked for once more.
    """

    def __init__(
        self,
        priority: Priority,
        in_order: bool,
        taker: Taker,
        pins: Pins,
        window: int,
        handed_on: Callable[[list[Block]], None],
    ) -> None:
        self.priority = priority
        self.in_order = in_order
        self.window = window
        self.batch = pins.batch(window)
        self.parts: dict[int, Part] = {}
        self.rate = Rate()
        self.group: GroupMembers | None = None
        self._taker = taker
        self._pins = pins
        self._handed_on = handed_on
        self._started = False
        self._queue: deque[Part] = deque()
        self._coming: dict[tuple[int, int], Part] = {}
        self._fetch: deque[tuple[Part, int]] = deque()
        self._held_back: dict[tuple[int, int], Part] = {}
        self._held: dict[int, list[Block]] = {}
        self._holding = 0

    @property
    def total_bytes(self) -> int:
        """What was asked for."""
        return sum(part.wanted.total_bytes for part in self.parts.values())

    @property
    def ready_bytes(self) -> int:
        """What of it was handed out."""
        return sum(part.wanted.ready_bytes for part in self.parts.values())

    @property
    def wants_more(self) -> bool:
        """Whether there is something left to fetch for it."""
        return bool(self._fetch)

    def want(self, part: Part, extents: Iterable[Pair]) -> None:
        """Want these extents, too. Raises ValueError if one ends beyond the file."""
        part.wanted.add(extents, self.in_order)
        if not part.queued:
            part.queued = True
            self._queue.append(part)
        self.advance()

    def want_first(self, part: Part, first: int, stop: int) -> None:
        """Blocks that are waited for are fetched by demand; the window stays what it is."""

    def start(self) -> None:
        """The peer has mapped the arena: hand out blocks from now on."""
        self._started = True
        self.advance()

    def release(self, places: Iterable[int]) -> list[int]:
        """The peer is done with what lies there; returns the places it does not hold."""
        freed, unknown = [], []
        for at in places:
            blocks = self._held.get(at)
            if blocks is None:
                unknown.append(at)
                continue
            block = blocks.pop()
            self._holding -= 1
            if not blocks:
                del self._held[at]
            self._pins.unpin(block)
            freed.append(block)
        self._handed_on(freed)
        return unknown

    def close(self) -> None:
        """The peer is gone: let go of everything, and ask for nothing more."""
        self._started = False
        self._queue.clear()
        self._coming.clear()
        self._fetch.clear()
        self._held_back.clear()
        self.release([at for at, blocks in self._held.items() for _ in blocks])

    def advance(self) -> None:
        """Move the window on, as far as there is room."""
        if not self._started:
            return
        for key, part in list(self._held_back.items()):
            block = part.file.blocks.get(key[1])
            del self._held_back[key]
            if block is None:
                self._fetch.append((part, key[1]))
            elif block.state is State.READY:
                self._hand(part, block)
        room = self.window - len(self._coming) - self._holding
        if room < self.batch and self._coming:
            return
        while room > 0 and self._queue:
            part = self._queue[0]
            index = self._next_block(part)
            if index is None:
                self._queue.popleft().queued = False
                continue
            room -= 1
            self._coming[part.inode, index] = part
            block = part.file.blocks.get(index)
            if block is None:
                self._fetch.append((part, index))
            elif block.state is State.READY:
                self._hand(part, block)

    def next_run(self) -> FileRun | None:
        """What to fetch next."""
        while self._fetch:
            part, first = self._fetch[0]
            if (part.inode, first) in self._coming and self._may_fetch(part, first):
                count = 1
                limit = min(part.file.plan.range_blocks, len(self._fetch))
                while count < limit and self._fetch[count] == (part, first + count):
                    if part.file.has(first + count):
                        break
                    count += 1
                return part.file, first, count
            self._fetch.popleft()
        return None

    def landed(self, part: Part, block: Block) -> None:
        """A block of a file of the plan has become READY."""
        if (part.inode, block.index) in self._coming:
            self._hand(part, block)

    def lost(self, part: Part, block: Block) -> None:
        """A block is gone: failed for good, or to be fetched again."""
        key = part.inode, block.index
        if key not in self._coming:
            return
        self._held_back.pop(key, None)
        if block.error is None:
            self._fetch.appendleft((part, block.index))
            return
        for other in [other for other in self._coming if other[0] == part.inode]:
            del self._coming[other]
            self._held_back.pop(other, None)
        part.fail(block.error, self._taker.failed)

    def accessed(self, part: Part, indices: range) -> None:
        """Reads through the mount are not this plan's."""

    def wasted(self) -> None:
        """The window bounds what nobody came for."""

    def awaits(self, part: Part, block: Block) -> bool:
        """Whether the block is still to be handed out, here or to a rank that has not come."""
        mark = part.wanted.marks[block.index]
        expecting = self.group is not None and self.group.is_expecting()
        return mark == WANTED or (mark != UNWANTED and expecting)

    def _next_block(self, part: Part) -> int | None:
        if not part.is_alive(self._taker.failed):
            return None
        inode, coming = part.inode, self._coming
        run = part.wanted.next_run(1, lambda index: (inode, index) in coming)
        return None if run is None else run[0]

    def _may_fetch(self, part: Part, index: int) -> bool:
        return not part.file.has(index) and part.is_alive(self._taker.failed)

    def _hand(self, part: Part, block: Block) -> None:
        key = part.inode, block.index
        if not self._started or not self._pins.pin(block):
            self._held_back[key] = part
            return
        del self._coming[key]
        part.wanted.mark_ready(block.index)
        at = block.slot * self._pins.block_size
        self._held.setdefault(at, []).append(block)
        self._holding += 1
        self._taker.handed(part.inode, block.extent.start, block.extent.size, at)
