"""Open directories, and where each reader is in them: cookies that survive the daemon.

It lists nothing itself. The one idea: a directory is shown in the order of a hash of its names, and
the cookie of a name is that hash (as ext4 has it). So a cookie means the same in every listing and
in every daemon: a reader goes on after it, whoever answers, and a name that was there all the time
is shown once, whatever came or went meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fusefs.tree.inodes import Entry
from fusefs.tree.tree import Tree

FIRST_COOKIE = 3
"""0 is the begin, 1 and 2 follow "." and ".."."""


@dataclass(slots=True)
class _Open:
    """A directory that is open: what it held when it was last opened, by cookie."""

    entry: Entry
    cookies: Sequence[int]
    entries: Sequence[Entry]
    opens: int


class DirectoryStreams:
    """The directories that are open, by inode, which is also their handle.

    The mutable state of DirectoryStreams is `_open`. INVARIANT: an inode in it is acquired once.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, inode: int) -> None:
        """One open more; all readers of this directory see it as it is now. Raises as `listing`."""
        cookies, entries = in_cookie_order(await self._tree.listing(inode))
        known = self._open.get(inode)
        if known is None:
            self._open[inode] = _Open(self._tree.acquire(inode), cookies, entries, 1)
            return
        known.cookies, known.entries = cookies, entries
        known.opens += 1

    async def walk(self, inode: int, cookie: int) -> Iterator[tuple[int, bytes, Entry]]:
        """What follows after `cookie`: (its own cookie, name, entry); "." and ".." first.

        A handle of the daemon before us is opened anew.
        """
        if inode not in self._open:
            await self.open(inode)
        return self._walk(self._open[inode], cookie)

    def release(self, inode: int) -> None:
        """One open less. Nothing, for a handle of the daemon before us that was not used since."""
        known = self._open.get(inode)
        if known is None:
            return
        known.opens -= 1
        if not known.opens:
            del self._open[inode]
            self._tree.release(inode)

    def _walk(self, known: _Open, cookie: int) -> Iterator[tuple[int, bytes, Entry]]:
        if cookie < 1:
            yield 1, b".", known.entry
        if cookie < 2:
            yield 2, b"..", self._tree.get(known.entry.parent)
        for number in range(bisect_right(known.cookies, cookie), len(known.cookies)):
            yield known.cookies[number], known.entries[number].name, known.entries[number]


def in_cookie_order(entries: Sequence[Entry]) -> tuple[list[int], list[Entry]]:
    """The entries by their cookies, and the cookies. A microsecond for each."""
    ordered = sorted((_hash(entry.name), entry.name, entry) for entry in entries)
    cookies, last = [], FIRST_COOKIE - 1
    for number, _, _ in ordered:
        # Two names of one hash, of 62 bits, get numbers that follow each other.
        last = max(number, last + 1)
        cookies.append(last)
    return cookies, [entry for _, _, entry in ordered]


def _hash(name: bytes) -> int:
    """62 bits: the kernel takes 63, and a few are used for what comes first and for collisions."""
    digest = blake2b(name, digest_size=8).digest()
    return FIRST_COOKIE + (int.from_bytes(digest, "little") >> 2)
