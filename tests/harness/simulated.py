"""A store in memory that keeps the store's contract and fails when told to.

For tests of whatever stands above a store. It is held to the same contract suite as the real ones,
so that what passes on it means something. The one idea: an object is a list of versions with one
current, and a failure is announced before the request that it hits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from fusefs.errors import AccessDenied, FusefsError, ObjectChanged, ObjectNotFound, StoreUnavailable
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta
from fusefs.store.base import LIST_PAGE_KEYS

PIECE_BYTES = 1 << 20


class SimulatedStore:
    """Obeys `fusefs.store.base.Store`. Thread-safe.

    `page_keys` is how much one page of a listing holds. `requests` logs every call as a tuple:
    ("check", prefix), ("list", prefix), ("head", key), ("read", key, extent).
    """

    def __init__(self, page_keys: int = LIST_PAGE_KEYS) -> None:
        self.page_keys = page_keys
        self.exists = True
        self.forbidden = False
        self.requests: list[tuple[object, ...]] = []
        # The mutable state of SimulatedStore, under its lock. INVARIANT: versions only grow, so
        # that no two versions of a key ever share an etag.
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[ObjectMeta, bytes]] = {}
        self._versions = 0
        self._failures: deque[FusefsError] = deque()
        self._short: deque[int] = deque()

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """Make `data` the current version of `key`."""
        with self._lock:
            self._versions += 1
            id = ObjectId(key, f"v{self._versions}")
            meta = ObjectMeta(id, len(data), self._versions * 10**9)
            self._objects[key] = (meta, bytes(data))
            return meta

    def delete(self, key: str) -> None:
        """Remove `key`, which must exist."""
        with self._lock:
            del self._objects[key]

    def all_keys(self) -> set[str]:
        """Every key there is now."""
        with self._lock:
            return set(self._objects)

    def data(self, key: str) -> bytes:
        """The current bytes of `key`, which must exist."""
        with self._lock:
            return self._objects[key][1]

    def fail_next(self, error: FusefsError, count: int = 1) -> None:
        """Let the next `count` requests of any kind raise `error`."""
        with self._lock:
            self._failures.extend([error] * count)

    def truncate_next(self, size: int, count: int = 1) -> None:
        """Let each of the next `count` reads raise `StoreUnavailable` after `size` bytes."""
        with self._lock:
            self._short.extend([size] * count)

    def check(self, prefix: str) -> None:
        """See `Store`."""
        objects = self._begin("check", prefix)
        if prefix and not any(key.startswith(prefix) for key in objects):
            raise ObjectNotFound(f"nothing is below {prefix!r}")

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`. A token is the name of the last entry of the page before."""
        objects = self._begin("list", prefix)
        names: set[str] = set()
        for key in objects:
            if key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition("/")
                names.add(prefix + head + slash)
        left = sorted(name for name in names if token is None or name > token)
        page = left[: self.page_keys]
        return ListPage(
            # A directory marker is an object only in the listing of itself, as on S3.
            tuple(objects[n][0] for n in page if not n.endswith("/") or n == prefix),
            tuple(n for n in page if n.endswith("/") and n != prefix),
            page[-1] if len(left) > len(page) else None,
        )

    def head(self, key: str) -> ObjectMeta:
        """See `Store`."""
        objects = self._begin("head", key)
        if key not in objects:
            raise ObjectNotFound(f"{key!r} does not exist")
        return objects[key][0]

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        try:
            objects = self._begin("read", id.key, extent)
        except ObjectNotFound as error:
            raise ObjectChanged(f"{id.key!r} is gone with its bucket") from error
        meta, data = objects.get(id.key, (None, b""))
        if meta is None or meta.id != id or extent.stop > len(data):
            raise ObjectChanged(f"{id.key!r} holds another version")
        with self._lock:
            size = min(self._short.popleft() if self._short else extent.size, extent.size)
        for start in range(0, size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, size)
            buffer[start:stop] = data[extent.start + start : extent.start + stop]
            if landed is not None:
                landed(stop)
        if size < extent.size:
            raise StoreUnavailable(f"{id.key!r} came short: {size} of {extent.size} bytes")

    def close(self) -> None:
        """See `Store`: there is nothing to let go of."""

    def _begin(self, *request: object) -> dict[str, tuple[ObjectMeta, bytes]]:
        """Log a request, fail if told to, and return the objects as they are now."""
        with self._lock:
            self.requests.append(request)
            if self._failures:
                raise self._failures.popleft()
            if self.forbidden:
                raise AccessDenied("these credentials may not read it")
            if not self.exists:
                raise ObjectNotFound("there is no such bucket")
            return dict(self._objects)
