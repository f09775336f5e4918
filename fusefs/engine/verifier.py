"""Reads that are checked against checksums, inside a worker process.

A decorator around a store's `read_into`. Pieces that lie in the range are summed as they arrive, in
the CPU's cache still, and told of only if they are right. Of pieces that reach beyond it (a CRC of
a whole object) the sums of the parts are reported, for `fusefs.engine.checking` to put together. A
mismatch is raised from within the read, so that the store drops the connection: the next try gets
another. Decides nothing about tries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fusefs.config import Config
from fusefs.errors import ChecksumMismatch, Unsupported
from fusefs.objects import Checksums, Extent, ObjectId
from fusefs.policy.crc import CRC32, CRC32C, CRC64NVME, Crc, find_crc
from fusefs.store.base import Source, Store
from fusefs.store.checksums import Finder

log = logging.getLogger("fusefs.verifier")

OFF, CHECK, REQUIRE = "off", "check", "require"
"""The values of `engine.checksums`."""


class Finding(Protocol):
    """Who knows checksums: `fusefs.store.checksums.Finder`."""

    def find(self, id: ObjectId) -> Checksums | None:
        """Those of this version, or None. Raises `StoreUnavailable`."""


@runtime_checkable
class SumsRanges(Protocol):
    """A store that sends a checksum with each range."""

    def read_summed_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """As `Store.read_into`; what `landed` tells of was checked.

        Raises `ChecksumMismatch`, and `Unsupported` if the server sends no checksum; then nothing
        has landed.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """The sum of one part of a piece that could not be checked by itself."""

    piece: Extent
    expected: int
    extent: Extent
    crc: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of bytes that landed since the report before.

    So many were compared, so many have no checksum, and of the rest there are parts, whose sums are
    of the kind `crc`.
    """

    verified: int = 0
    missing: int = 0
    crc: str = ""
    parts: tuple[Part, ...] = ()

    def joined(self, later: Report) -> Report:
        """Both as one."""
        return Report(
            self.verified + later.verified,
            self.missing + later.missing,
            later.crc or self.crc,
            self.parts + later.parts,
        )

    def to_wire(self) -> dict[str, Any]:
        """As JSON-able values."""
        parts = [
            [p.piece.start, p.piece.stop, p.expected, p.extent.start, p.extent.stop, p.crc]
            for p in self.parts
        ]
        return {"ok": self.verified, "none": self.missing, "crc": self.crc, "parts": parts}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Report:
        """Undo `to_wire`."""
        parts = (
            Part(Extent(a, b), want, Extent(c, d), crc) for a, b, want, c, d, crc in wire["parts"]
        )
        return cls(wire["ok"], wire["none"], wire["crc"], tuple(parts))


Landed = Callable[[int, Report], None]
"""Told that so many bytes from the beginning are final, and of the bytes since the last time."""


class Verifier:
    """Reads with checks. Thread-safe. With `required`, what has no checksum is refused.

    The mutable state of Verifier is whether the store has turned out to sum no ranges.
    """

    def __init__(self, store: Store, finder: Finding, block_size: int, required: bool) -> None:
        self._store = store
        self._finder = finder
        self._block_size = block_size
        self._required = required
        self._is_plain = False
        self._kinds = {name: find_crc(name) for name in (CRC32, CRC32C, CRC64NVME)}

    def read_into(self, id: ObjectId, extent: Extent, buffer: memoryview, landed: Landed) -> None:
        """See `Store`; also raises `ChecksumMismatch`, and `Unsupported` for a file without any.

        `landed` hears of the end, too.
        """
        sums = self._finder.find(id)
        if sums is not None and sums.stops[-1] >= extent.stop:
            check = _Check(self._kinds[sums.crc], sums, extent, buffer, self._block_size, id.key)
            self._store.read_into(id, extent, buffer, lambda size: landed(*check.landed(size)))
            landed(*check.landed(extent.size))
            return
        if self._summed_by(id, extent, buffer, landed):
            return
        if self._required:
            raise Unsupported(
                f"{id.key!r} has no checksum, and engine.checksums is {REQUIRE}: push it with"
                f" fusefs push, or set {CHECK}"
            )
        told = _Told(landed, verified=False)
        self._store.read_into(id, extent, buffer, told.landed)
        told.landed(extent.size)

    def _summed_by(self, id: ObjectId, extent: Extent, buffer: memoryview, landed: Landed) -> bool:
        """Read with the sums that the store makes of each range; False if it makes none."""
        if self._is_plain or not isinstance(self._store, SumsRanges):
            return False
        told = _Told(landed, verified=True)
        try:
            self._store.read_summed_into(id, extent, buffer, told.landed)
        except Unsupported as error:
            log.info("ranges come without sums: %s", error)
            self._is_plain = True
            return False
        told.landed(extent.size)
        return True


class _Told:
    """Reports of a read whose bytes are all of one kind. Its state is how far they went."""

    def __init__(self, landed: Landed, verified: bool) -> None:
        self._landed = landed
        self._verified = verified
        self._told = 0

    def landed(self, size: int) -> None:
        more, self._told = size - self._told, size
        self._landed(size, Report(verified=more) if self._verified else Report(missing=more))


class _Check:
    """The check of one read; `name` is the object's, for a message.

    The mutable state of _Check is how far it has come, in units, and the parts it has not reported.
    INVARIANT: what it says is there ends where a block ends, and so do the parts reported with it.
    """

    def __init__(
        self,
        kind: Crc,
        sums: Checksums,
        extent: Extent,
        buffer: memoryview,
        block_size: int,
        name: str,
    ) -> None:
        self._kind = kind
        self._extent = extent
        self._buffer = buffer
        self._block_size = block_size
        self._name = name
        self._units = _units(sums, extent, block_size)
        self._next = 0
        self._parts: list[Part] = []

    def landed(self, size: int) -> tuple[int, Report]:
        """`size` bytes are there: how many of them are checked or summed, and what that gave."""
        arrived = self._extent.start + size
        verified = 0
        while self._next < len(self._units) and self._units[self._next].part.stop <= arrived:
            verified += self._sum(self._units[self._next])
            self._next += 1
        done = self._units[self._next - 1].part.stop if self._next else self._extent.start
        if done < self._extent.stop:
            done -= done % self._block_size
        count = sum(part.extent.stop <= done for part in self._parts)
        parts, self._parts = self._parts[:count], self._parts[count:]
        return done - self._extent.start, Report(verified, 0, self._kind.name, tuple(parts))

    def _sum(self, unit: _Unit) -> int:
        """Sum one unit; how many bytes are known to be right by that."""
        start = unit.part.start - self._extent.start
        found = self._kind.compute(self._buffer[start : start + unit.part.size])
        if unit.part != unit.piece:
            self._parts.append(Part(unit.piece, unit.expected, unit.part, found))
            return 0
        if found != unit.expected:
            raise ChecksumMismatch(
                f"{self._name!r} came with wrong bytes between {unit.piece.start} and"
                f" {unit.piece.stop}: their {self._kind.name} is {found:x}, not {unit.expected:x}"
            )
        return unit.part.size


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is summed at once: a part of a piece whose CRC is `expected`, or all of it."""

    piece: Extent
    expected: int
    part: Extent


def _units(sums: Checksums, extent: Extent, block_size: int) -> list[_Unit]:
    """What makes up `extent`, in order.

    A piece that lies in the extent is one unit; of others, the part in the extent is cut at the
    bounds of blocks, since blocks may be fetched again one by one.
    """
    units = []
    for piece, expected in sums.pieces(extent):
        start, stop = max(piece.start, extent.start), min(piece.stop, extent.stop)
        if (start, stop) == (piece.start, piece.stop):
            units.append(_Unit(piece, expected, piece))
            continue
        while start < stop:
            cut = min(stop, start - start % block_size + block_size)
            units.append(_Unit(piece, expected, Extent(start, cut)))
            start = cut
    return units


def open_verifier(store: Store, source: Source, config: Config) -> Verifier | None:
    """What the settings ask for. Raises `ConfigError` if a library that it needs is missing."""
    mode = config.engine.checksums
    if mode == OFF:
        return None
    finder = Finder(store, source.prefix)
    return Verifier(store, finder, config.engine.block_size, mode == REQUIRE)
