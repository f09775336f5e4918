"""What keeper and daemon of a mount leave each other, in memory that outlives both.

One memfd: first these vitals, then the journal of names (`fusefs.tree.journal`). The daemon beats,
and writes its counters down; the keeper writes a note of what it did. Each word has one writer, so
nothing is locked and nobody waits: a stopped keeper does not hold the daemon up, nor the reverse.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

VITALS_BYTES = 64 << 10
JOURNAL_BYTES = 1 << 30
"""For some six million names. Memory is taken as it is used, like that of any memfd."""

BEAT_S = 1.0
"""From one beat to the next. Counters are as old as this at most when a daemon dies."""

_WORD = struct.Struct("=Q")
_BEATS_AT = 0
_NOTE_AT, _COUNTERS_AT = 4096, 32768
_CELL_BYTES = 8192
_HEADER_BYTES = 16


@dataclass(frozen=True, slots=True)
class Note:
    """What the keeper has to say of its mount.

    Times are as of the mount's begin; CLOCK_MONOTONIC is one for all processes. `restarts` were
    crashes or hangs, `last_end` is how the last of those daemons ended. `upgrades` went well,
    `refused` counts those that did not, and `why_refused` is of the last of them. `init_reply` is
    what the kernel was answered to FUSE_INIT, in hexadecimal; empty: nothing yet.
    """

    started_ns: int = 0
    started_s: float = 0.0
    restarts: int = 0
    last_end: str | None = None
    upgrades: int = 0
    refused: int = 0
    why_refused: str | None = None
    init_reply: str = ""


class Vitals:
    """The first part of the shared memory.

    The mutable state of Vitals is that memory. INVARIANT: of a cell's two halves, the one that was
    written last is whole, or the other one is.
    """

    def __init__(self, memory: mmap.mmap | memoryview) -> None:
        self._memory = memory

    def beat(self) -> None:
        """The daemon is alive. Its own word."""
        self._put_word(_BEATS_AT, self.beats() + 1)

    def beats(self) -> int:
        """How often it has beaten; what counts is whether that changes."""
        return self._word(_BEATS_AT)

    def note(self) -> Note:
        """What the keeper wrote last."""
        return Note(**(self._read(_NOTE_AT) or {}))

    def write_note(self, note: Note) -> None:
        """The keeper's own."""
        texts = {"last_end": note.last_end, "why_refused": note.why_refused}
        short = {name: text[:1000] for name, text in texts.items() if text is not None}
        self._write(_NOTE_AT, asdict(replace(note, **short)))  # type: ignore[arg-type]

    def counters(self) -> dict[str, int]:
        """The counters as the last daemon wrote them down."""
        return self._read(_COUNTERS_AT) or {}

    def write_counters(self, counters: dict[str, int]) -> None:
        """The daemon's own."""
        self._write(_COUNTERS_AT, counters)

    def _read(self, at: int) -> dict[str, Any] | None:
        """The newer half of a cell that is whole."""
        halves = sorted((at, at + _CELL_BYTES), key=self._word, reverse=True)
        for half in halves:
            length, check = divmod(self._word(half + 8), 1 << 32)
            start = half + _HEADER_BYTES
            if self._word(half) and length <= _CELL_BYTES - _HEADER_BYTES:
                data = bytes(self._memory[start : start + length])
                if zlib.crc32(data) == check:
                    value: dict[str, Any] = json.loads(data)
                    return value
        return None

    def _write(self, at: int, value: dict[str, Any]) -> None:
        """Into the older half, its number last."""
        numbers = self._word(at), self._word(at + _CELL_BYTES)
        half = at if numbers[0] <= numbers[1] else at + _CELL_BYTES
        data = json.dumps(value).encode("ascii")
        start = half + _HEADER_BYTES
        self._memory[start : start + len(data)] = data
        self._put_word(half + 8, len(data) << 32 | zlib.crc32(data))
        self._put_word(half, max(numbers) + 1)

    def _word(self, at: int) -> int:
        word: int = _WORD.unpack(self._memory[at : at + 8])[0]
        return word

    def _put_word(self, at: int, value: int) -> None:
        self._memory[at : at + 8] = _WORD.pack(value)


def open_memory() -> int:
    """New memory for vitals and journal of a mount that begins now; returns its descriptor."""
    fd = os.memfd_create("fusefs-estate", os.MFD_CLOEXEC)
    os.ftruncate(fd, VITALS_BYTES + JOURNAL_BYTES)
    Vitals(map_memory(fd)).write_note(Note(time.time_ns(), time.monotonic()))
    return fd


def map_memory(fd: int) -> memoryview:
    """All of it."""
    return memoryview(mmap.mmap(fd, VITALS_BYTES + JOURNAL_BYTES))
