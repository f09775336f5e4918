"""What a store is, and how a SOURCE names one.

A store translates between the project's values and one SDK; it neither retries, nor limits, nor
caches, nor logs. Adapters are imported only when their scheme is used: SDKs are extras.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta

LIST_PAGE_KEYS = 1000
"""Keys per listing request: the most S3 gives (ListObjectsV2 MaxKeys)."""


SILENCE_MIN_S = 2.0
"""Stores do take so long for their first bytes now and then."""

TRIES_MIN = 3
"""So many silent answers fit into the deadline of a read, also into a short one."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed SOURCE.

    `prefix` is "" or ends in "/"; `text` is what the user typed, normalised, without secrets.
    `server` is the host or account that holds the bucket, where the SOURCE names one, else "".
    """

    scheme: str
    bucket: str
    prefix: str
    text: str
    server: str = ""


class Store(Protocol):
    """Read access to one bucket.

    Blocking and thread-safe; used inside worker processes. Constructors open no connection, start
    no thread. Raises only `fusefs.errors.FusefsError`; neither retries nor limits itself: that is
    the fetcher's job. Keys are full names, the source's prefix included.
    """

    def check(self, prefix: str) -> None:
        """Return if the bucket can be listed and `prefix` is "" or names something.

        One request. Raises `ObjectNotFound` (bucket or prefix), `AccessDenied`, `StoreUnavailable`,
        each with a sentence for the person who typed the source.
        """

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """One request: the page of objects and prefixes directly below `prefix` ("" or "…/").

        At most `LIST_PAGE_KEYS` entries where the protocol pages. `token` comes from the page
        before. An object whose key equals `prefix` (a directory marker) may be in the page: callers
        drop it.
        """

    def head(self, key: str) -> ObjectMeta:
        """One request: the current version of `key`. Raises `ObjectNotFound`."""

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """Fill `buffer` (len == extent.size > 0) with exactly these bytes of exactly this version.

        Calls `landed(n)` now and then, when the first `n` bytes of `buffer` are final. Nothing is
        written before identity, status, length and Content-Range were checked. After it raised,
        nothing writes to `buffer` any more. Raises `ObjectChanged` if the bucket now holds another
        version or none, `StoreUnavailable` on a short body, `CorruptData` rather than deliver other
        bytes.
        """

    def close(self) -> None:
        """Let go of connections and files. Idempotent."""


class Upload(Protocol):
    """One object on its way into a store, part by part; no reader sees it before `commit`.

    `put_part` is thread-safe; the others are called once, by one thread, after all parts. Raises
    like `Store`.
    """

    part_bytes: int
    """Size of every part but the last, which is the rest."""

    def put_part(self, index: int, data: memoryview) -> bool:
        """Have `data` in the store as part `index` (from 0), checked by the store as it arrives.

        Returns False if the store had it already, from an attempt that was cut: compared by
        checksum, never by size alone. That is all there is to resuming.
        """

    def commit(self) -> ObjectMeta:
        """Make the object of its parts, in place of any version there was: all of it or nothing.

        The metadata is the store's own answer, for the caller to compare.
        """


class Writer(Protocol):
    """Write access to one bucket, for `fusefs push`. Blocking and thread-safe; raises like `Store`.

    Constructors open no connection. A call may be made again after `StoreUnavailable`.
    """

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """Write a small object at once (an empty one, too), checked by the store as it arrives."""

    def begin(self, key: str, size: int) -> Upload:
        """Begin to write `size` (> 0) bytes as `key`, or go on with an attempt that was cut."""

    def delete(self, key: str) -> None:
        """Remove `key`; that it is not there is fine."""

    def discard(self, prefix: str) -> int:
        """Remove what attempts that were cut left below `prefix`; how many objects that concerned.

        Whoever is still at work on one of them fails.
        """

    def publish(self, prefix: str) -> None:
        """Called last: what was written below `prefix` is whole.

        Stores whose objects appear one by one have nothing to do here; in others, nothing written
        is seen before.
        """

    def close(self) -> None:
        """Let go of connections and files. Idempotent; parts stay, for the next attempt."""


def silence_s(longest_s: float, read_deadline_s: float) -> float:
    """How long to wait for the next bytes: so that a read may be tried again before its deadline.

    `longest_s` is what the adapter waits at most.
    """
    return max(min(SILENCE_MIN_S, longest_s), min(longest_s, read_deadline_s / TRIES_MIN))
