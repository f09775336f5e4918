"""The names of one mount: lookups and listings, with as few requests as being right allows.

It translates nothing for the kernel and reads no bytes. The one idea: a lookup is answered from the
directory's listing, which one request brings for all of its names. Only in a directory of more than
one page is a name asked for by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import trio
from cachetools import TLRUCache

from fusefs.config import TreeConfig
from fusefs.errors import FusefsError, ObjectNotFound
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.telemetry.counters import Counters
from fusefs.tree.flights import Flights
from fusefs.tree.inodes import Entry, Inodes, NotADirectory
from fusefs.tree.journal import Journal
from fusefs.tree.listings import OBJECT_BYTES_MAX, Lister, Listings
from fusefs.tree.names import prefix_of, segment_of

ANSWERS_CACHED_MAX = 50_000
"""Names asked for one by one, absent ones included: at most 45 MB (tests/tree/test_memory.py). A
loader that probes for files which are not there tries dozens; a data set has more."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """A snapshot. Files and bytes are those of the names in the caches."""

    entries_live: int
    listings_cached: int
    names_cached: int
    files_known: int
    bytes_known: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a targeted lookup found: None is nothing."""

    entry: Entry | None
    expires_at: float


class Tree:
    """Presents the keys below `prefix` ("" or "…/") as files and directories.

    The mutable state of Tree is the live entries (`_inodes`), what is believed of directories
    (`_listings`) and of names in big ones (`_answers`, by key), and what is asked (`_asking`).
    Used from one trio thread: what stands between two awaits is one step.
    """

    def __init__(
        self,
        lister: Lister,
        prefix: str,
        config: TreeConfig,
        counters: Counters,
        now: Callable[[], float],
        journal: Journal | None = None,
    ) -> None:
        self._lister = lister
        self._config = config
        self._counters = counters
        self._now = now

        self._inodes = Inodes(prefix, journal)
        self._listings = Listings(lister, self._inodes, config, counters, now)
        self._answers: TLRUCache[str, _Answer, float] = TLRUCache(
            ANSWERS_CACHED_MAX, lambda _key, answer, _now: answer.expires_at, now
        )
        self._asking: Flights[_Answer] = Flights()

    def restore(self) -> None:
        """Know again what the kernel knows, from the journal. Asks no store."""
        self._inodes.restore()

    def known(self) -> dict[str, int]:
        """How many objects the kernel knows, and the sum of their sizes."""
        return self._inodes.known()

    def get(self, inode: int) -> Entry:
        """The live entry. Raises `ObjectChanged` (ESTALE) if the inode is unknown."""
        return self._inodes.get(inode)

    def remember(self, entry: Entry, n: int = 1) -> None:
        """Count `n` references that the kernel got: a LOOKUP reply, a READDIRPLUS reply."""
        self._inodes.remember(entry, n)

    def forget(self, inode: int, n: int) -> None:
        """FORGET: the kernel gave `n` references back."""
        self._inodes.forget(inode, n)

    def acquire(self, inode: int) -> Entry:
        """Keep an entry while a handle is open. Raises `ObjectChanged` if it is unknown."""
        return self._inodes.acquire(inode)

    def release(self, inode: int) -> None:
        """The end of one `acquire`."""
        self._inodes.release(inode)

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """The entry called `name`. Counts no reference: `remember` does, once the kernel has it.

        Raises `ObjectNotFound`, `NotADirectory`, `ObjectChanged` (unknown parent), or what the
        store raised.
        """
        directory = self._directory(parent)
        segment = segment_of(name)
        if segment is None:
            raise ObjectNotFound(f"no object can be called {name!r}")
        listing = self._listings.known(directory.key)
        if listing is None:
            listing = await self._listings.ask_first(directory)
        elif listing.complete:
            self._counters.list_hits += 1
        if listing.complete:
            entry = listing.find(name)
        else:
            entry = await self._targeted(directory, name, directory.key + segment)
        if entry is None:
            raise ObjectNotFound(f"there is no {directory.key + segment!r}")
        return self._inodes.live(entry)

    async def listing(self, inode: int) -> tuple[Entry, ...]:
        """Everything in a directory, sorted by name, asked for at most `ttl_s` ago.

        Raises `NotADirectory`, `ObjectChanged` (unknown inode), `Unsupported` (too many names), or
        what the store raised.
        """
        directory = self._directory(inode)
        listing = self._listings.known(directory.key)
        if listing is not None and listing.complete:
            self._counters.list_hits += 1
            return listing.entries
        return (await self._listings.ask_full(directory)).entries

    def siblings(self, inode: int) -> tuple[Entry, ...] | None:
        """The fresh listing of a file's directory, the file included, or None. No I/O.

        Raises `ObjectChanged` if the inode is unknown.
        """
        entry = self._inodes.get(inode)
        if entry.is_directory:
            return None
        listing = self._listings.known(prefix_of(entry.key))
        return listing.entries if listing is not None and listing.complete else None

    def find(self, id: ObjectId) -> int | None:
        """The inode by which the kernel knows this version, or None if it does not."""
        return self._inodes.find(id)

    def mark_stale(self, id: ObjectId) -> None:
        """A fetch saw another version in the store: the next lookup asks the store again."""
        self._inodes.mark_stale(id)
        self._listings.drop(id)
        answer = self._answers.get(id.key)
        if answer is not None and answer.entry is not None:
            meta = answer.entry.meta
            if meta is not None and meta.id == id:
                self._answers.pop(id.key, None)
        self._asking.detach(id.key)

    @property
    def entries_live(self) -> int:
        """How many entries the kernel or a handle refers to; the root is always one."""
        return len(self._inodes)

    def statistics(self) -> TreeStatistics:
        """What is held in memory. Walks the targeted answers: some milliseconds at their limit."""
        listings = self._listings.all_known()
        metas = [
            answer.entry.meta
            for answer in self._answers.values()
            if answer.entry is not None and answer.entry.meta is not None
        ]
        return TreeStatistics(
            entries_live=len(self._inodes),
            listings_cached=sum(listing.complete for listing in listings),
            names_cached=sum(len(listing.entries) for listing in listings) + len(self._answers),
            files_known=sum(listing.files for listing in listings) + len(metas),
            bytes_known=sum(listing.size_bytes for listing in listings)
            + sum(m.size for m in metas),
        )

    def _directory(self, inode: int) -> Entry:
        entry = self._inodes.get(inode)
        if not entry.is_directory:
            raise NotADirectory(f"{entry.key!r} is a file")
        return entry

    async def _targeted(self, directory: Entry, name: bytes, key: str) -> Entry | None:
        """Look one name up in a directory whose listing is too long to ask for."""
        answer = self._answers.get(key)
        if answer is not None:
            self._counters.list_hits += 1
            return answer.entry

        def keep(answer: _Answer) -> None:
            self._answers[key] = answer

        ask = partial(self._ask_both, directory, name, key)
        return (await self._asking.join(key, ask, keep)).entry

    async def _ask_both(self, directory: Entry, name: bytes, key: str) -> _Answer:
        """Ask whether `key` is a prefix and whether it is an object, at once: one round trip.

        The nursery is off the read path, and its children let no `FusefsError` out: no groups.
        """
        asked_at = self._now()
        child = self._inodes.directory(directory.inode, name, key + "/")
        below: _Outcome[bool] = _Outcome()
        object_: _Outcome[ObjectMeta] = _Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(below.settle, partial(self._listings.ask_exists, child))
            nursery.start_soon(object_.settle, partial(self._lister.head, key))
        if below.get():  # as in a listing, the directory wins
            return _Answer(child, asked_at + self._config.ttl_s)
        meta = object_.get()
        if meta is not None and meta.size <= OBJECT_BYTES_MAX:
            entry = self._inodes.file(directory.inode, name, meta)
            return _Answer(entry, asked_at + self._config.ttl_s)
        return _Answer(None, asked_at + self._config.negative_ttl_s)


class _Outcome(Generic[T]):
    """The value or error of one of several questions asked at once; absence is the value None."""

    __slots__ = ("_error", "_value")

    def __init__(self) -> None:
        self._value: T | None = None
        self._error: FusefsError | None = None

    async def settle(self, ask: Callable[[], Awaitable[T]]) -> None:
        try:
            self._value = await ask()
        except ObjectNotFound:
            self._value = None
        except FusefsError as error:
            self._error = error

    def get(self) -> T | None:
        if self._error is not None:
            raise self._error
        return self._value
