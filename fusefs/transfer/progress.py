"""What a transfer tells while it is under way, and what it says at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fusefs.errors import FusefsError


class TransferCut(FusefsError):
    """A transfer failed after it had begun; the same command goes on with it."""


class Progress(Protocol):
    """Watches a transfer. Called from any thread, one call at a time."""

    def begin(self, what: str, total_bytes: int) -> None:
        """A step begins, and ends the one before it."""

    def advance(self, count: int) -> None:
        """`count` more bytes of this step are done."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a transfer did, or with a dry run would do. `bytes_moved` crossed the network."""

    files: int
    files_moved: int
    bytes_moved: int
    bytes_there: int
    seconds: float
    removed: tuple[str, ...] = ()
    """Names taken away since they belonged to the model before."""
    left_out: tuple[str, ...] = ()
    """Names that were not transferred, with the reason in each."""
    moved: tuple[str, ...] = ()
    """The names that `files_moved` counts."""
