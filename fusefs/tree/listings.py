"""What is known of whole directories: listings, asked for once and believed for a time.

It knows no single names beyond them (that is `tree`). The one idea: the first page of a listing is
the cheapest question about a directory. If it is the only page, it answers every name; if not, that
is worth knowing as well: the directory is *big*, and names are better asked for one by one.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Protocol

import trio
from cachetools import LRUCache, TLRUCache

from fusefs.config import TreeConfig
from fusefs.errors import CorruptData, StoreTimeout, Unsupported
from fusefs.objects import ListPage, ObjectId, ObjectMeta
from fusefs.telemetry.counters import Counters
from fusefs.tree.flights import Flights
from fusefs.tree.inodes import Entry, Inodes
from fusefs.tree.names import is_reserved, name_below, prefix_of

NAMES_CACHED_MAX = 100_000
"""Names in all cached listings together: about 60 MB (tests/tree/test_memory.py). The largest model
repositories have some thousand files."""

LISTING_DEADLINE_S = 300.0
"""For all pages of one listing after the first: 500 of them at 0.6 s, several times what stores
take. Each page has a deadline of its own, but 500 of those would be hours."""

LISTING_NAMES_MAX = 500_000
"""Names in one listing while it is made: 0.3 GB. Beyond, listing fails rather than the mount."""

PAGES_WITHOUT_NEWS_MAX = 1000
"""Pages in a row that bring no name. Some are empty where much was deleted; a listing that says
the same again and again, each time with another token, must end all the same."""

OBJECT_BYTES_MAX = 1 << 46
"""64 TiB: more than an object of Amazon's or Google's holds. An open file takes a byte of memory
for each of its blocks, so whoever claims to have exabytes would take all of the daemon's."""

_DIRECTORIES_REPORTED_MAX = 1000
"""Directories whose hidden names were logged; past that, some are logged twice."""

_log = logging.getLogger("fusefs.tree")
_by_name = attrgetter("name")


class Lister(Protocol):
    """Asks a store for names: `fusefs.store.base.Store` made asynchronous, retried and limited.

    Raises only `fusefs.errors.FusefsError`, and only when trying again has failed as well.
    """

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store.list_page`."""

    async def head(self, key: str) -> ObjectMeta:
        """See `Store.head`."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What one directory held when it was asked for; a store may change it between pages."""

    entries: tuple[Entry, ...]
    """Sorted by name; empty unless complete."""
    complete: bool
    """False: the directory is big, more than one page, and only that is known."""
    expires_at: float
    files: int = 0
    size_bytes: int = 0

    def find(self, name: bytes) -> Entry | None:
        """The entry of this name, if the directory has one."""
        index = bisect_left(self.entries, name, key=_by_name)
        if index < len(self.entries) and self.entries[index].name == name:
            return self.entries[index]
        return None


class _Gathering:
    """The pages of one listing, turned into entries as they come: no long stop at the end."""

    def __init__(self, directory: Entry, inodes: Inodes) -> None:
        self._directory = directory
        self._inodes = inodes
        self._directories: dict[bytes, Entry] = {}
        self._files: dict[bytes, Entry] = {}
        self._unnameable: set[str] = set()

    def __len__(self) -> int:
        return len(self._directories) + len(self._files) + len(self._unnameable)

    def add(self, page: ListPage) -> None:
        inode, prefix = self._directory.inode, self._directory.key
        for key in page.prefixes:
            self._add_directory(key)
        for meta in page.objects:
            if meta.id.key.endswith("/"):
                self._add_directory(meta.id.key)  # a marker makes a directory and is no file
            elif meta.size > OBJECT_BYTES_MAX:
                self._unnameable.add(meta.id.key)
            elif (name := name_below(prefix, meta.id.key)) is not None:
                self._files[name] = self._inodes.file(inode, name, meta)
            elif not is_reserved(prefix, meta.id.key):
                self._unnameable.add(meta.id.key)

    def _add_directory(self, key: str) -> None:
        if key == self._directory.key:  # the marker of the directory itself
            return
        name = name_below(self._directory.key, key)
        if name is None:
            if not is_reserved(self._directory.key, key):
                self._unnameable.add(key)
        elif name not in self._directories:
            self._directories[name] = self._inodes.directory(self._directory.inode, name, key)

    def hidden(self) -> list[str]:
        """Keys without a file name: unnameable, or behind a directory of the same name."""
        behind = self._files.keys() & self._directories.keys()
        return sorted(self._unnameable) + sorted(self._files[name].key for name in behind)

    def finish(self, expires_at: float) -> Listing:
        """All of it. Where a key is also a prefix the directory wins: it leads to more."""
        shown = self._files | self._directories
        sizes = [entry.meta.size for entry in shown.values() if entry.meta is not None]
        entries = tuple(sorted(shown.values(), key=_by_name))
        return Listing(entries, True, expires_at, files=len(sizes), size_bytes=sum(sizes))


@dataclass(frozen=True, slots=True)
class _FirstPage:
    asked_at: float
    page: ListPage
    listing: Listing

    @property
    def exists(self) -> bool:
        return bool(self.page.objects or self.page.prefixes or self.page.next_token)


class Listings:
    """Cached listings, by prefix, asked for by single flight.

    The mutable state of Listings is what is known (`_known`), what is being asked (`_first`,
    `_full`) and how many hidden names were reported (`_hidden`), each by prefix.
    INVARIANT: a listing's age counts from before its first request.
    """

    def __init__(
        self,
        lister: Lister,
        inodes: Inodes,
        config: TreeConfig,
        counters: Counters,
        now: Callable[[], float],
    ) -> None:
        self._lister = lister
        self._inodes = inodes
        self._config = config
        self._counters = counters
        self._now = now

        self._known: TLRUCache[str, Listing, float] = TLRUCache(
            NAMES_CACHED_MAX, lambda _key, listing, _now: listing.expires_at, now, _size
        )
        self._first: Flights[_FirstPage] = Flights()
        self._full: Flights[Listing] = Flights()
        self._hidden: LRUCache[str, int] = LRUCache(_DIRECTORIES_REPORTED_MAX)

    def known(self, prefix: str) -> Listing | None:
        """What is known and still fresh, complete or not. No I/O."""
        return self._known.get(prefix)

    def all_known(self) -> list[Listing]:
        """Everything fresh."""
        return list(self._known.values())

    async def ask_first(self, directory: Entry) -> Listing:
        """One request: the whole listing if it fits a page, else one that is not complete."""
        return (await self._first_page(directory, keep_empty=True)).listing

    async def ask_exists(self, directory: Entry) -> bool:
        """One request: whether anything, shown or hidden or a marker, is below this prefix."""
        # Absent names are asked for in thousands: their empty listings would push out real ones.
        return (await self._first_page(directory, keep_empty=False)).exists

    async def ask_full(self, directory: Entry) -> Listing:
        """As many requests as there are pages. Raises `Unsupported` beyond `LISTING_NAMES_MAX`."""
        keep = partial(self._keep, directory.key)
        return await self._full.join(directory.key, partial(self._gather, directory), keep)

    def drop(self, id: ObjectId) -> None:
        """Believe no listing that shows this version, nor one under way that may."""
        prefix = prefix_of(id.key)
        name = name_below(prefix, id.key)
        listing = self._known.get(prefix)
        if listing is not None and name is not None:
            entry = listing.find(name)
            if entry is not None and entry.meta is not None and entry.meta.id == id:
                self._known.pop(prefix, None)
        self._first.detach(prefix)
        self._full.detach(prefix)

    async def _first_page(self, directory: Entry, keep_empty: bool) -> _FirstPage:
        async def ask() -> _FirstPage:
            asked_at = self._now()
            page = await self._lister.list_page(directory.key, None)
            if page.next_token is not None:
                listing = Listing((), complete=False, expires_at=asked_at + self._config.ttl_s)
                return _FirstPage(asked_at, page, listing)
            gathering = _Gathering(directory, self._inodes)
            gathering.add(page)
            return _FirstPage(asked_at, page, self._finish(directory.key, gathering, asked_at))

        def keep(first: _FirstPage) -> None:
            if first.exists or keep_empty:
                self._keep(directory.key, first.listing)

        return await self._first.join(directory.key, ask, keep)

    async def _gather(self, directory: Entry) -> Listing:
        first = await self._first_page(directory, keep_empty=True)
        if first.listing.complete:
            return first.listing
        with trio.move_on_after(LISTING_DEADLINE_S):
            return await self._gather_rest(directory, first)
        raise StoreTimeout(f"no whole listing of {directory.key!r} in {LISTING_DEADLINE_S:g} s")

    async def _gather_rest(self, directory: Entry, first: _FirstPage) -> Listing:
        gathering = _Gathering(directory, self._inodes)
        gathering.add(first.page)
        token = first.page.next_token
        asked: set[str] = set()
        idle = 0
        while token is not None:
            if token in asked or idle > PAGES_WITHOUT_NEWS_MAX:
                raise CorruptData(f"the listing of {directory.key!r} does not end: same page twice")
            asked.add(token)
            names = len(gathering)
            page = await self._lister.list_page(directory.key, token)
            gathering.add(page)
            idle = 0 if len(gathering) > names else idle + 1
            if len(gathering) > LISTING_NAMES_MAX:
                raise Unsupported(
                    f"{directory.key!r} holds more than {LISTING_NAMES_MAX} names, too many to"
                    " list; they can be opened by name"
                )
            token = page.next_token
        return self._finish(directory.key, gathering, first.asked_at)

    def _finish(self, prefix: str, gathering: _Gathering, asked_at: float) -> Listing:
        self._report_hidden(prefix, gathering.hidden())
        # That nothing is there is a negative answer: someone may be about to upload.
        ttl_s = self._config.ttl_s if len(gathering) else self._config.negative_ttl_s
        return gathering.finish(asked_at + ttl_s)

    def _keep(self, prefix: str, listing: Listing) -> None:
        if _size(listing) > NAMES_CACHED_MAX:
            listing = Listing((), complete=False, expires_at=listing.expires_at)
        known = self._known.get(prefix)
        if listing.complete or known is None or not known.complete:
            self._known[prefix] = listing

    def _report_hidden(self, prefix: str, hidden: list[str]) -> None:
        before = self._hidden.get(prefix, 0)
        if len(hidden) <= before:
            return
        self._hidden[prefix] = len(hidden)
        self._counters.names_hidden += len(hidden) - before
        if not before:
            _log.warning(
                "%d keys below %r cannot be shown as files, for instance %r",
                len(hidden),
                prefix,
                hidden[0],
            )


def _size(listing: Listing) -> int:
    return 1 + len(listing.entries)  # 1: an empty one takes room, too
