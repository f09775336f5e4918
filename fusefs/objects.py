"""The values every layer speaks of: which bytes, of which version, of which object.

Nothing here does I/O or knows a store. A key is an object's full name inside its bucket (for a
directory: the path relative to it), as `str`; bytes that are not UTF-8 are carried by
surrogateescape, so that every POSIX name survives the round trip.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The half-open byte range `[start, stop)` of one object."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ObjectId:
    """One immutable version of one object: its full key and the store's etag for that version."""

    key: str
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What a listing tells about one object version."""

    id: ObjectId
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Checksums:
    """The CRCs of the pieces that one version is made of: piece i ends where `stops[i]` says.

    `crc` names their kind (see `fusefs.policy.crc`). There are as many `values` as `stops`, which
    grow, and of which the last is the object's size.
    """

    crc: str
    stops: Sequence[int]
    values: Sequence[int]

    def pieces(self, extent: Extent) -> Iterator[tuple[Extent, int]]:
        """Every piece that has bytes of `extent`, whole, with its CRC."""
        index = bisect_right(self.stops, extent.start)
        while index < len(self.stops):
            start = self.stops[index - 1] if index else 0
            if start >= extent.stop:
                return
            yield Extent(start, self.stops[index]), self.values[index]
            index += 1


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a delimited listing: objects and common prefixes directly below a prefix.

    `prefixes` end in "/". `next_token` is None on the last page.
    """

    objects: tuple[ObjectMeta, ...]
    prefixes: tuple[str, ...]
    next_token: str | None
