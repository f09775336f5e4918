"""What the kernel knows of our names, in memory that outlives the daemon.

A daemon that takes over a mount is asked about inodes that it never gave out. So each inode that
the kernel may know has a record here, written before the reply that makes it known; the journal
is all that is read at a take-over. It knows no policy and asks no store.

The one idea: a record never moves. It is a place of fixed size that is written while it counts
nothing, and becomes true by one aligned store of eight bytes, its lookup count; that count is also
all that changes later, and zero frees the place. So a death at any moment leaves every record true
or free, and there is nothing to compact: a freed place is used again, and the memory taken is what
the names took at their highest.

A count may be too high (a death between the record and its reply, or after a FORGET was taken and
before it was counted), never too low: an entry may stay for longer than the kernel needs it, by at
most the requests in hand at a death, and none is missed.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

log = logging.getLogger("fusefs.tree")

PLACE_BYTES = 64
"""Places are multiples of this: a cache line. Names of one mount fall into a few sizes."""

_WORD = struct.Struct("=Q")
_HEADER_BYTES = 24
"""Three words: the lookup count; the size of the place, which never changes; the record's length
and check sum."""

_FIXED = struct.Struct("=QQQqHIIB")
"""inode, parent, size, mtime_ns, lengths of name, key and etag, and whether it is a file."""


class Memory(Protocol):
    """Bytes that can be read and written by slices, zeros at first; a memoryview."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, at: slice, /) -> bytes | memoryview:
        """Read some."""

    def __setitem__(self, at: slice, data: bytes, /) -> None:
        """Write some: eight bytes on an eight-byte border as one, others in any order."""


class Row(NamedTuple):
    """One entry, as `fusefs.tree.inodes.Entry` has it; `etag` is None for a directory."""

    inode: int
    parent: int
    name: bytes
    key: str
    etag: str | None
    size: int
    mtime_ns: int


class Journal:
    """Records in `memory`, which is nobody else's.

    The mutable state of Journal is in the memory, but for where it ends (`_end`) and which places
    are free (`_free`, by size), which `load` finds out. INVARIANT: a place whose count is zero is
    free, beyond the end, or being written.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self._is_full = False

    def load(self) -> list[tuple[int, Row, int]]:
        """Find every record: its place, what it says, and its lookup count. Before anything else.

        The place is a number for `set_lookups`, never 0.
        """
        self._free.clear()
        self._end = 0
        found = []
        for at, size, lookups in self._places():
            self._end = at + size
            row = self._read(at) if lookups else None
            if row is not None:
                found.append((at + 1, row, lookups))
                continue
            if lookups:
                log.warning("a record of the journal is damaged; a name may be stale")
                self._put_word(at, 0)
            self._free.setdefault(size, []).append(at)
        return found

    def add(self, row: Row, lookups: int) -> int:
        """Write a record and return its place; 0 if there is no room, and a crash will miss it."""
        data = _encode(row)
        size = -(-(_HEADER_BYTES + len(data)) // PLACE_BYTES) * PLACE_BYTES
        at = self._take(size)
        if at is None:
            return 0
        start = at + _HEADER_BYTES
        self._memory[start : start + len(data)] = data
        self._put_word(at + 16, len(data) << 32 | zlib.crc32(data))
        self._put_word(at, lookups)  # from here on it is true
        return at + 1

    def set_lookups(self, place: int, lookups: int) -> None:
        """Change a record's count; at 0 its place is free."""
        at = place - 1
        self._put_word(at, lookups)
        if not lookups:
            self._free.setdefault(self._word(at + 8), []).append(at)

    def _take(self, size: int) -> int | None:
        """A free place of this size, or up to twice of it, or a new one at the end."""
        for fitting in range(size, 2 * size + 1, PLACE_BYTES):
            places = self._free.get(fitting)
            if places:
                return places.pop()
        at = self._end
        if at + size > len(self._memory):
            if not self._is_full:
                log.warning("the journal is full: new names would be stale after a crash")
                self._is_full = True
            return None
        self._put_word(at + 8, size)
        self._end = at + size
        return at

    def _places(self) -> Iterator[tuple[int, int, int]]:
        """Every place: where it begins, its size, its count."""
        at = 0
        while at + _HEADER_BYTES <= len(self._memory):
            size = self._word(at + 8)
            if size < PLACE_BYTES or size % PLACE_BYTES or at + size > len(self._memory):
                return  # zero: none was made here yet
            yield at, size, self._word(at)
            at += size

    def _read(self, at: int) -> Row | None:
        length, check = divmod(self._word(at + 16), 1 << 32)
        if _HEADER_BYTES + length > self._word(at + 8):
            return None
        data = bytes(self._memory[at + _HEADER_BYTES : at + _HEADER_BYTES + length])
        return _decode(data) if zlib.crc32(data) == check else None

    def _word(self, at: int) -> int:
        word: int = _WORD.unpack(self._memory[at : at + 8])[0]
        return word

    def _put_word(self, at: int, value: int) -> None:
        # glibc copies eight bytes by one store, so no death finds half of them written.
        self._memory[at : at + 8] = _WORD.pack(value)


def _encode(row: Row) -> bytes:
    key = row.key.encode("utf-8", "surrogatepass")
    etag = b"" if row.etag is None else row.etag.encode("utf-8", "surrogatepass")
    fixed = _FIXED.pack(
        row.inode, row.parent, row.size, row.mtime_ns,
        len(row.name), len(key), len(etag), row.etag is not None,
    )  # fmt: skip
    return b"".join((fixed, row.name, key, etag))


def _decode(data: bytes) -> Row | None:
    if len(data) < _FIXED.size:
        return None
    inode, parent, size, mtime_ns, name, key, etag, is_file = _FIXED.unpack_from(data)
    start = _FIXED.size
    texts = data[start : start + name], data[start + name : start + name + key], data[-etag:]
    if len(data) != start + name + key + etag:
        return None
    etag_text = (texts[2] if etag else b"").decode("utf-8", "surrogatepass")
    key_text = texts[1].decode("utf-8", "surrogatepass")
    return Row(inode, parent, texts[0], key_text, etag_text if is_file else None, size, mtime_ns)
