"""Which bytes of which part are here: the account that decides what is handed over.

No I/O. The one idea: a part is whole when each of its bytes was claimed by one writer and that
writer said done; nothing a daemon says makes it whole, and no byte is written twice. What a writer
could not finish, it gives back, and the next claims it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loaderhint.plan import Extent, Part


class Sink(Protocol):
    """Where bytes go. Called by several threads at a time."""

    def begin(self, part: Part) -> Any:
        """The memory for a part: what `fill` and the taker of the part get as `memory`."""

    def fill(self, pieces: Sequence[Piece], read: Read) -> None:
        """Have `read` write these pieces, which follow each other in the source.

        When this returns the source may be reused. Raises what `read` raises.
        """


class Read(Protocol):
    """Writes the next bytes of a source into buffers, one after the other."""

    def __call__(self, buffers: list[memoryview]) -> None:
        """Fill all of them. Raises OSError."""


@dataclass(slots=True)
class _Account:
    """One part; `claimed` are disjoint extents of the file, by offset."""

    number: int
    part: Part
    memory: Any = None
    begun: bool = False
    claimed: list[Extent] = field(default_factory=list)
    done_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `[start, stop)` of a file that one writer has claimed, all of one part."""

    account: _Account
    start: int
    stop: int

    @property
    def memory(self) -> Any:
        """The part's memory, from `Sink.begin`."""
        return self.account.memory

    @property
    def offset(self) -> int:
        """Where in the part it begins."""
        return self.start - self.account.part.start

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return self.stop - self.start


class Ledger:
    """The parts of one load, from claimed to taken.

    The mutable state of Ledger is the accounts, the parts that are whole but not taken (`_ready`,
    and in plan order `_early`, whose turn has not come), who writes, and how the load ends.
    INVARIANT: all of it changes under `_changed`; a whole part is in one of the two, once.
    INVARIANT: in plan order `_ready` continues where the taker stands.
    """

    def __init__(self, parts: Sequence[Part], sink: Sink, ordered: bool, ready_max: int) -> None:
        self._sink = sink
        self._ordered = ordered
        self._ready_max = ready_max
        self._accounts = [_Account(number, part) for number, part in enumerate(parts)]
        self._by_file: dict[int, list[_Account]] = {}
        for account in self._accounts:
            if account.part.size_bytes:
                self._by_file.setdefault(account.part.file, []).append(account)
        for accounts in self._by_file.values():
            accounts.sort(key=lambda account: account.part.start)
        self._changed = threading.Condition()
        self._ready: deque[_Account] = deque()
        self._ready_bytes = 0
        self._early: set[int] = set()
        self._early_bytes = 0
        self._writing = 0
        self._next = 0
        self._taken = 0
        self._error: BaseException | None = None
        self._stopped = False
        with self._changed:
            for account in self._accounts:
                if not account.part.size_bytes:
                    account.memory = sink.begin(account.part)
                    self._is_whole(account)

    def claim(self, file: int, start: int, stop: int) -> list[list[Piece]]:
        """Claim what nobody has of these bytes; each list follows itself without a gap.

        Memory is made here, for parts that are begun.
        """
        accounts = self._by_file.get(file, [])
        first = bisect_right(accounts, start, key=lambda account: account.part.stop)
        last = bisect_left(accounts, stop, key=lambda account: account.part.start)
        pieces: list[Piece] = []
        with self._changed:
            for account in accounts[first:last]:
                part = account.part
                free = _claim(account.claimed, max(start, part.start), min(stop, part.stop))
                pieces += [Piece(account, *extent) for extent in free]
                if free and not account.begun:
                    account.memory, account.begun = self._sink.begin(part), True
        runs: list[list[Piece]] = []
        for piece in pieces:
            if runs and runs[-1][-1].stop == piece.start:
                runs[-1].append(piece)
            else:
                runs.append([piece])
        return runs

    def fill(self, run: Sequence[Piece], read: Read) -> None:
        """Write claimed pieces, which follow each other. Raises what `read` raises."""
        self._sink.fill(run, read)

    def done(self, pieces: Iterable[Piece]) -> None:
        """These bytes are written."""
        with self._changed:
            for piece in pieces:
                account = piece.account
                account.done_bytes += piece.size_bytes
                if account.done_bytes == account.part.size_bytes:
                    self._is_whole(account)

    def give_back(self, pieces: Iterable[Piece]) -> None:
        """These bytes are not written, or not to be trusted."""
        with self._changed:
            for piece in pieces:
                piece.account.claimed = _without(piece.account.claimed, piece.start, piece.stop)

    def missing(self) -> Iterator[tuple[int, int, int]]:
        """(file, start, stop) of what nobody has claimed, in the order of the plan."""
        with self._changed:
            accounts = [(one.part, list(one.claimed)) for one in self._accounts]
        for part, claimed in accounts:
            at = part.start
            for start, stop in [*claimed, (part.stop, part.stop)]:
                if at < start:
                    yield part.file, at, start
                at = stop

    def wait_room(self) -> bool:
        """Wait while enough is ready to be taken; False if no more is wanted.

        For writers that take bytes as they are offered. Only what can be taken counts: what waits
        for its turn in plan order does not, so that the part whose turn it is can be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended() or self._ready_bytes < self._ready_max)
            return not self._ended()

    def wait_turn(self) -> bool:
        """Like `wait_room`, for writers that choose the next bytes of the plan: `leave` follows.

        What waits for its turn counts as well, unless that is all there is and nobody writes: then
        what it waits for is still to be written.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._ended()
                    or self._ready_bytes + self._early_bytes < self._ready_max
                    or not (self._ready or self._writing)
                )
            )
            self._writing += not self._ended()
            return not self._ended()

    def leave(self) -> None:
        """Who waited for a turn has written."""
        with self._changed:
            self._writing -= 1
            self._changed.notify_all()

    def take(self) -> tuple[Part, Any] | None:
        """The next whole part and its memory; None when all were taken.

        Raises the error that ended the load.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._error or self._taken == len(self._accounts)
            )
            if self._error is not None:
                raise self._error
            if not self._ready:
                return None
            account = self._ready.popleft()
            self._ready_bytes -= account.part.size_bytes
            self._taken += 1
            memory, account.memory = account.memory, None
            self._changed.notify_all()
            return account.part, memory

    def fail(self, error: BaseException) -> None:
        """The load cannot go on; the taker hears it."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def stop(self) -> None:
        """No more is wanted."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _ended(self) -> bool:
        return self._stopped or self._error is not None

    def _is_whole(self, account: _Account) -> None:
        if not self._ordered:
            self._hand_over(account)
        else:
            self._early.add(account.number)
            self._early_bytes += account.part.size_bytes
            while self._next in self._early:
                following = self._accounts[self._next]
                self._early.remove(self._next)
                self._early_bytes -= following.part.size_bytes
                self._hand_over(following)
                self._next += 1
        self._changed.notify_all()

    def _hand_over(self, account: _Account) -> None:
        self._ready.append(account)
        self._ready_bytes += account.part.size_bytes


def _claim(claimed: list[Extent], start: int, stop: int) -> list[Extent]:
    """What of `[start, stop)` is not in `claimed` yet; it is afterwards."""
    free = []
    at = start
    for taken_start, taken_stop in claimed:
        if taken_stop <= at:
            continue
        if taken_start >= stop:
            break
        if at < taken_start:
            free.append((at, taken_start))
        at = taken_stop
    if at < stop:
        free.append((at, stop))
    for extent in free:
        claimed.insert(bisect_left(claimed, extent), extent)
    _join(claimed)
    return free


def _join(claimed: list[Extent]) -> None:
    """Make one of those that touch: a part of many slots stays a short list."""
    joined: list[Extent] = []
    for start, stop in claimed:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    claimed[:] = joined


def _without(claimed: list[Extent], start: int, stop: int) -> list[Extent]:
    left = [(first, min(last, start)) for first, last in claimed if first < start]
    right = [(max(first, stop), last) for first, last in claimed if last > stop]
    return left + right
