"""The writing side of `SimulatedStore`: keeps the contract of writers, and fails when told to.

An attempt that was cut lives in the fake bucket, as it would in a real one: another writer on the
same bucket goes on with it.
"""

from __future__ import annotations

import threading
from collections import deque

from fusefs.errors import FusefsError, Unsupported
from fusefs.objects import ObjectMeta
from tests.harness.simulated import SimulatedStore

PART_BYTES = 64 << 10


class SimulatedWriter:
    """Obeys `fusefs.store.base.Writer`. Thread-safe.

    `calls` logs what was asked, in order: ("put", key), ("part", key, index, sent?), ("commit",
    key), ("delete", key), ("publish", prefix). `unfinished` is shared by all writers of a bucket.
    """

    def __init__(
        self,
        store: SimulatedStore,
        unfinished: dict[str, dict[int, bytes]],
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.store = store
        self.unfinished = unfinished
        self.part_bytes = part_bytes
        self.calls: list[tuple[object, ...]] = []
        self.failures: deque[FusefsError] = deque()
        """Raised by the next calls, one each."""
        self.lock = threading.Lock()

    def log(self, *call: object) -> None:
        """Note a call, or fail in its place."""
        with self.lock:
            if self.failures:
                raise self.failures.popleft()
            self.calls.append(call)

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        self.log("put", key)
        return self.store.put(key, data)

    def begin(self, key: str, size: int) -> SimulatedUpload:
        """See `Writer`."""
        self.log("begin", key)
        with self.lock:
            held = self.unfinished.setdefault(key, {})
        return SimulatedUpload(self, key, size, held)

    def delete(self, key: str) -> None:
        """See `Writer`."""
        self.log("delete", key)
        if key in self.store.all_keys():
            self.store.delete(key)

    def discard(self, prefix: str) -> int:
        """See `Writer`."""
        with self.lock:
            found = [key for key in self.unfinished if key.startswith(prefix)]
            for key in found:
                del self.unfinished[key]
        return len(found)

    def publish(self, prefix: str) -> None:
        """See `Writer`."""
        self.log("publish", prefix)

    def close(self) -> None:
        """See `Writer`: there is nothing to let go of."""


class SimulatedUpload:
    """Obeys `fusefs.store.base.Upload`."""

    def __init__(
        self, writer: SimulatedWriter, key: str, size: int, held: dict[int, bytes]
    ) -> None:
        self.part_bytes = writer.part_bytes
        self._writer = writer
        self._key = key
        self._size = size
        self._held = held

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        fresh = self._held.get(index) != bytes(data)
        self._writer.log("part", self._key, index, fresh)
        self._held[index] = bytes(data)
        return fresh

    def commit(self) -> ObjectMeta:
        """See `Upload`."""
        self._writer.log("commit", self._key)
        count = -(-self._size // self.part_bytes)
        whole = b"".join(self._held[index] for index in range(count))
        if len(whole) != self._size:
            raise Unsupported(f"the parts of {self._key!r} are {len(whole)} bytes")
        with self._writer.lock:
            self._writer.unfinished.pop(self._key, None)
        return self._writer.store.put(self._key, whole)
