"""Entries, their inode numbers, and which of them the kernel still knows.

It asks nothing of a store and believes nothing for a time: that is `listings` and `tree`. The one
idea: an inode is one *version*. Its number is a hash of (kind, key, etag), so it is the same after
FORGET and after a restart, and an overwritten object is another inode: the kernel's page cache,
which goes by inode, can never mix two versions.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from fusefs.errors import FusefsError, InternalError, ObjectChanged
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.tree.journal import Journal, Row

ROOT_INODE = 1
"""FUSE_ROOT_ID in <linux/fuse.h>."""

INODE_MASK = (1 << 63) - 1
"""Inodes use 63 bits: the top one is a flag in file handles, which are inodes otherwise."""

LOWEST_INODE = 1024
"""Hashes below are not used: 0 means "no such file" to FUSE, 1 is the root, and the mount's own
files (`.fusefs`) need numbers that no object can have."""


class NotADirectory(FusefsError):
    """A name was looked up, or a listing asked for, below a file."""

    errno: ClassVar[int] = errno.ENOTDIR


@dataclass(slots=True, eq=False)
class Entry:
    """One file or directory. Read by everyone, written by `Inodes` alone."""

    inode: int
    parent: int
    """The directory's inode; the root is its own parent."""
    name: bytes
    key: str
    """A file's full key; a directory's full prefix, "" or "…/"."""
    meta: ObjectMeta | None
    """None for a directory."""
    lookups: int = 0
    """References the kernel holds (FUSE's lookup count)."""
    opens: int = 0
    """Open handles."""
    stale: bool = False
    """A fetch saw that the store now holds another version, or none."""
    place: int = 0
    """Where the journal has it; 0: nowhere."""

    @property
    def is_directory(self) -> bool:
        """Whether names can be looked up below it."""
        return self.meta is None


class Inodes:
    """The entries that are alive: known to the kernel, or open.

    What the kernel knows is in the journal, if there is one, before the kernel is told. Opens are
    not: an inode that is open is one that the kernel knows.

    The mutable state of Inodes is `_live`, and how many objects and bytes that is.
    INVARIANT: the root is in it; every other entry in it has lookups > 0 or opens > 0; an entry
    outside has neither.
    INVARIANT: of one version at most one entry is live, and who asks for that version gets it.
    """

    def __init__(self, prefix: str, journal: Journal | None = None) -> None:
        self._journal = journal
        root = Entry(inode=ROOT_INODE, parent=ROOT_INODE, name=b"", key=prefix, meta=None)
        self._live: dict[int, Entry] = {ROOT_INODE: root}
        self._objects, self._bytes = 0, 0

    def __len__(self) -> int:
        return len(self._live)

    def known(self) -> dict[str, int]:
        """What is alive, as figures: `known_objects` and `known_bytes`, the sum of their sizes."""
        return {"known_objects": self._objects, "known_bytes": self._bytes}

    def restore(self) -> None:
        """Take over what the journal says that the kernel knows. Before anything is asked."""
        if self._journal is None:
            return
        for place, row, lookups in self._journal.load():
            meta = None
            if row.etag is not None:
                meta = ObjectMeta(ObjectId(row.key, row.etag), row.size, row.mtime_ns)
            self._live[row.inode] = Entry(
                row.inode, row.parent, row.name, row.key, meta, lookups, place=place
            )
            self._count(self._live[row.inode], 1)

    def get(self, inode: int) -> Entry:
        """The live entry. Raises `ObjectChanged` (ESTALE: the kernel looks the name up anew)."""
        entry = self._live.get(inode)
        if entry is None:
            raise ObjectChanged(f"inode {inode} is not known any more")
        return entry

    def file(self, parent: int, name: bytes, meta: ObjectMeta) -> Entry:
        """The entry of a version that the store just named; the live one if there is one."""
        for number in _numbers("file", meta.id.key, meta.id.etag):
            live = self._live.get(number)
            if live is None:
                return Entry(number, parent, name, meta.id.key, meta)
            if live.meta is not None and live.meta.id == meta.id:
                # The store says that this is the current version: v1, v2, and v1 again does happen,
                # since an etag is often a hash of the content. Then mtime may differ, too.
                live.meta = meta
                live.stale = False
                return live
        raise AssertionError("unreachable: the numbers never end")

    def directory(self, parent: int, name: bytes, prefix: str) -> Entry:
        """The entry of a directory; the live one if there is one."""
        for number in _numbers("directory", prefix, ""):
            live = self._live.get(number)
            if live is None:
                return Entry(number, parent, name, prefix, meta=None)
            if live.meta is None and live.key == prefix:
                return live
        raise AssertionError("unreachable: the numbers never end")

    def live(self, entry: Entry) -> Entry:
        """The live entry of the same version, else `entry` itself."""
        live = self._live.get(entry.inode)
        return live if live is not None and _same(live, entry) else entry

    def remember(self, entry: Entry, n: int = 1) -> None:
        """Count `n` references that the kernel got in a reply.

        Raises `InternalError` if its number now belongs to another live entry: a 64-bit collision
        that arose after `entry` was made. To fail that name is the one safe answer.
        """
        if entry.inode not in self._live:
            self._count(entry, 1)
        live = self._live.setdefault(entry.inode, entry)
        if not _same(live, entry):
            raise InternalError(f"{entry.key!r} and {live.key!r} have the same inode number")
        if live.inode != ROOT_INODE:  # the kernel never looks up nor forgets the root
            live.lookups += n
            self._write_down(live)

    def forget(self, inode: int, n: int) -> None:
        """Take back `n` references. Unknown inodes are ignored: FORGET has no reply to fail."""
        entry = self._live.get(inode)
        if entry is not None:
            entry.lookups = max(0, entry.lookups - n)
            self._write_down(entry)
            self._drop_unused(entry)

    def acquire(self, inode: int) -> Entry:
        """Keep the entry alive while a handle is open. Raises `ObjectChanged` if it is unknown."""
        entry = self.get(inode)
        entry.opens += 1
        return entry

    def release(self, inode: int) -> None:
        """The end of one `acquire`."""
        entry = self._live.get(inode)
        if entry is None or not entry.opens:
            raise InternalError(f"inode {inode} was released more often than acquired")
        entry.opens -= 1
        self._drop_unused(entry)

    def find(self, id: ObjectId) -> int | None:
        """The inode by which the kernel knows this version, or None if it does not."""
        for number in _numbers("file", id.key, id.etag):
            live = self._live.get(number)
            if live is None:
                return None
            if live.meta is not None and live.meta.id == id:
                return number
        raise AssertionError("unreachable: the numbers never end")

    def mark_stale(self, id: ObjectId) -> None:
        """Note that the store no longer holds this version; nothing happens if it is not live."""
        for number in _numbers("file", id.key, id.etag):
            live = self._live.get(number)
            if live is None:
                return
            if live.meta is not None and live.meta.id == id:
                live.stale = True
                return

    def _write_down(self, entry: Entry) -> None:
        """Have the journal say how often the kernel knows this entry."""
        if self._journal is None:
            return
        if entry.place:
            self._journal.set_lookups(entry.place, entry.lookups)
            if not entry.lookups:
                entry.place = 0
        elif entry.lookups:
            meta = entry.meta
            etag, size, mtime_ns = (
                (None, 0, 0) if meta is None else (meta.id.etag, meta.size, meta.mtime_ns)
            )
            row = Row(entry.inode, entry.parent, entry.name, entry.key, etag, size, mtime_ns)
            entry.place = self._journal.add(row, entry.lookups)

    def _drop_unused(self, entry: Entry) -> None:
        if not entry.lookups and not entry.opens and entry.inode != ROOT_INODE:
            del self._live[entry.inode]
            self._count(entry, -1)

    def _count(self, entry: Entry, n: int) -> None:
        if entry.meta is not None:
            self._objects += n
            self._bytes += n * entry.meta.size


def _same(one: Entry, other: Entry) -> bool:
    """Whether both present the same version of the same thing."""
    if one.meta is None or other.meta is None:
        return one.meta is other.meta and one.key == other.key
    return one.meta.id == other.meta.id


def _numbers(kind: str, key: str, etag: str) -> Iterator[int]:
    """The inode numbers an entry may have, best first; the next if another live entry has this one.

    At 63 bits that is for completeness: with a million live entries, one mount in 2·10^7 needs it.
    """
    salt = 0
    while True:
        # The length keeps (key, etag) apart; surrogatepass, since any text may come from a store.
        text = f"{kind}\0{salt}\0{len(key)}\0{key}{etag}"
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") & INODE_MASK
        if number >= LOWEST_INODE:
            yield number
        salt += 1
