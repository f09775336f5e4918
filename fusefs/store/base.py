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


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed SOURCE.

    `prefix` is "" or ends in "/"; `text` is what the user typed, normalised, without secrets.
    """

    scheme: str
    bucket: str
    prefix: str
    text: str


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
