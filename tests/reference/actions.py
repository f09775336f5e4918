"""What can happen in a history, as data: each action is a value, so a history can be shrunk.

Numbers that choose (a handle, a peer, a share of a file) are taken modulo what there is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Put:
    """A new version of `key`."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    """`key` is gone."""

    key: str


@dataclass(frozen=True, slots=True)
class Open:
    """Look a name up, and open what it leads to."""

    key: str


@dataclass(frozen=True, slots=True)
class List:
    """List the directory."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close a handle that nobody reads."""

    handle: int


@dataclass(frozen=True, slots=True)
class Read:
    """Several reads at once: (handle, offset, size) each; `cached`: through the page cache."""

    reads: tuple[tuple[int, int, int], ...]
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Hint:
    """A peer says that it will read 1/8ths `[first, stop)` of an open file."""

    peer: int
    handle: int
    mode: str
    first: int
    stop: int
    append: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """A peer waits for a block of its plan, for at most a second."""

    peer: int
    mode: str
    block: int


@dataclass(frozen=True, slots=True)
class Take:
    """A peer takes its events, and gives back so many of the slots it holds."""

    peer: int
    back: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A peer hangs up."""

    peer: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Everything that may go does: out of the arena, or out of the page cache."""

    arena: bool
    pages: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """The next requests fail."""

    times: int


@dataclass(frozen=True, slots=True)
class Lose:
    """The next read's worker dies half-way."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The next reads are late, so that they are hedged."""

    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Time passes."""

    seconds: float


Action = (
    Put | Delete | Open | List | Close | Read | Hint | Wait | Take | Leave | Evict
    | Fail | Lose | Stall | Sleep
)  # fmt: skip
