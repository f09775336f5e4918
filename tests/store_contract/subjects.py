"""The stores that the contract suite is run against, each with a way to change what it holds.

A subject is a store and the hand of somebody else in its bucket. What a backend cannot hold (a name
of 1,024 bytes in a directory) its subject refuses with `Unholdable`, and the test moves on.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError

from fusefs.config import S3Config
from fusefs.store.base import Store, Writer
from fusefs.store.posix import PosixStore
from fusefs.store.posix_write import PosixWriter
from fusefs.store.s3 import S3Store
from tests.harness.simulated import SimulatedStore
from tests.harness.simulated_writer import PART_BYTES, SimulatedWriter
from tests.harness.weed import Weed

CONNECTIONS = 8


class Unholdable(Exception):
    """This backend has no place for such a key."""


class Subject(Protocol):
    """One bucket seen from both sides."""

    store: Store
    pages: bool

    def put(self, key: str, data: bytes) -> None:
        """Write a new version of `key`, never the same one again. Raises `Unholdable`."""

    def delete(self, key: str) -> None:
        """Remove `key`."""

    def missing(self) -> Store:
        """A store on a bucket that does not exist."""

    def refused(self, action: Callable[[Store], object]) -> None:
        """Run `action` with the store as one sees it who may not read it."""


class WritableSubject(Subject, Protocol):
    """A bucket that can be written to as well."""

    def writer(self, part_bytes: int | None = None) -> Writer:
        """A new writer on this bucket; its parts are this large where the store lets one choose."""


class SimulatedSubject:
    """The fake, held to what the others promise."""

    pages = True

    def __init__(self) -> None:
        self.fake = SimulatedStore()
        self.store: Store = self.fake
        self._unfinished: dict[str, dict[int, bytes]] = {}

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `WritableSubject`."""
        return SimulatedWriter(self.fake, self._unfinished, part_bytes or PART_BYTES)

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`."""
        self.fake.put(key, data)

    def delete(self, key: str) -> None:
        """See `Subject`."""
        self.fake.delete(key)

    def missing(self) -> Store:
        """See `Subject`."""
        store = SimulatedStore()
        store.exists = False
        return store

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`."""
        self.fake.forbidden = True
        action(self.store)


class PosixSubject:
    """A directory; writers replace files by rename, as safetensors does."""

    pages = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store: Store = PosixStore(str(directory))

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `WritableSubject`."""
        return PosixWriter(str(self.directory), part_bytes or PART_BYTES)

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`."""
        segments = key.encode().split(b"/")
        if any(segment in (b"", b".", b"..") or len(segment) > 255 for segment in segments):
            raise Unholdable(key)
        path = self.directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        # Outside the directory, and of the same file system: it must never be listed.
        fresh = self.directory.with_name("being-written")
        fresh.write_bytes(data)
        fresh.rename(path)

    def delete(self, key: str) -> None:
        """See `Subject`."""
        (self.directory / key).unlink()

    def missing(self) -> Store:
        """See `Subject`."""
        return PosixStore(str(self.directory / "missing"))

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`. Root may read everything, so a thread of ours stops being root."""
        self.directory.chmod(0)
        try:
            _run_as_nobody(lambda: action(self.store))
        finally:
            self.directory.chmod(0o755)


class S3Subject:
    """A bucket on a real server."""

    pages = True

    def __init__(self, weed: Weed, bucket: str) -> None:
        self.store: Store = S3Store(bucket, S3Config(), CONNECTIONS)
        self._bucket = bucket
        self._client: Any = weed.client()

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        except ClientError as error:
            raise Unholdable(key) from error

    def delete(self, key: str) -> None:
        """See `Subject`."""
        self._client.delete_object(Bucket=self._bucket, Key=key)

    def missing(self) -> Store:
        """See `Subject`."""
        return S3Store("no-such-bucket", S3Config(), CONNECTIONS)

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`."""
        before = os.environ["AWS_SECRET_ACCESS_KEY"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
        store = S3Store(self._bucket, S3Config(), CONNECTIONS)
        try:
            action(store)
        finally:
            os.environ["AWS_SECRET_ACCESS_KEY"] = before
            store.close()

    def close(self) -> None:
        """Let go of all connections."""
        self.store.close()
        self._client.close()


def _run_as_nobody(action: Callable[[], object]) -> None:
    """Run `action` in a thread that has no rights over files, and raise what it raised."""

    def run() -> None:
        # Of this thread alone, and it takes the capabilities over files with it. Not root: no-op.
        ctypes.CDLL(None).setfsuid(65534)
        action()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
