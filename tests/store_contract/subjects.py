"""The stores that the contract suite is run against, each with a way to change what it holds.

A subject is a store and the hand of somebody else in its bucket. What a backend cannot hold (a name
of 1,024 bytes in a directory) its subject refuses with `Unholdable`, and the test moves on.
"""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from azure.core.exceptions import HttpResponseError
from botocore.exceptions import ClientError

from fusefs.config import Config, S3Config
from fusefs.store.azure import open_store as open_azure
from fusefs.store.base import Store, Writer
from fusefs.store.posix import PosixStore
from fusefs.store.posix_write import PosixWriter
from fusefs.store.s3 import S3Store
from fusefs.store.s3_write import S3Writer
from fusefs.store.source import open_store, open_writer, parse_source
from tests.harness.azurite import ACCOUNT, Azurite
from tests.harness.moto import Moto
from tests.harness.redis_server import RedisServer
from tests.harness.simulated import SimulatedStore
from tests.harness.simulated_writer import PART_BYTES, SimulatedWriter
from tests.harness.weed import Weed

CONNECTIONS = 8
AMAZON_PART_BYTES_MIN = 5 << 20


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
        """See `Subject`."""
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
        """See `Subject`."""
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


class RedisSubject:
    """The model without a name on a real server or cluster; every version is published."""

    pages = False

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._opened: list[Store] = []
        with server.client() as client:
            client.flushall()
        self.store: Store = self._open()
        self._writers: list[Writer] = []
        self._writer = self.writer()

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `Subject`. Parts are the chunks of the layout."""
        made = open_writer(parse_source(self._server.source), Config())
        self._writers.append(made)
        return made

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`."""
        self._writer.put(key, data)
        self._writer.publish("")

    def delete(self, key: str) -> None:
        """See `Subject`."""
        self._writer.delete(key)
        self._writer.publish("")

    def missing(self) -> Store:
        """See `Subject`. A server has 16 databases, a cluster one."""
        return self._open("/99")

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`."""
        os.environ["REDISCLI_AUTH"] = "not-the-secret"
        try:
            action(self._open())
        finally:
            del os.environ["REDISCLI_AUTH"]

    def close(self) -> None:
        """Let go of all connections."""
        for store in self._opened:
            store.close()
        for made in self._writers:
            made.close()

    def _open(self, db: str = "") -> Store:
        store = open_store(parse_source(self._server.source + db), Config())
        self._opened.append(store)
        return store


class S3Subject:
    """A bucket on a real server."""

    pages = True

    def __init__(self, server: Weed | Moto, bucket: str) -> None:
        self.store: Store = S3Store(bucket, S3Config(), CONNECTIONS)
        self._bucket = bucket
        self._client: Any = server.client()
        self._writers: list[Writer] = []

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `Subject`. Amazon takes no part of less than 5 MiB but the last, and moto neither."""
        size = max(part_bytes or PART_BYTES, AMAZON_PART_BYTES_MIN)
        made = S3Writer(self._bucket, S3Config(), CONNECTIONS, size)
        self._writers.append(made)
        return made

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
        for made in self._writers:
            made.close()
        self._client.close()


class AzureSubject:
    """A container on a real server, written to with the SDK's own client."""

    pages = True

    def __init__(self, azurite: Azurite, container: str) -> None:
        self._azurite = azurite
        self._container = container
        self._client = azurite.client()
        self.store: Store = self._store(container)
        self._writers: list[Writer] = []

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `Subject`. Parts have the size that the writer chooses."""
        made = open_writer(parse_source(f"az://{ACCOUNT}/{self._container}"), Config())
        self._writers.append(made)
        return made

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`. Azurite takes a name that XML cannot hold, and can then list nothing."""
        if any(character < " " and character not in "\t\n" for character in key):
            raise Unholdable(key)
        try:
            self._client.get_blob_client(self._container, key).upload_blob(data, overwrite=True)
        except HttpResponseError as error:
            raise Unholdable(key) from error

    def delete(self, key: str) -> None:
        """See `Subject`."""
        self._client.get_blob_client(self._container, key).delete_blob()

    def missing(self) -> Store:
        """See `Subject`."""
        return self._store("no-such-container")

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`."""
        before = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
        wrong = base64.b64encode(b"not-the-secret").decode()
        os.environ["AZURE_STORAGE_CONNECTION_STRING"] = before.replace(self._azurite.key, wrong)
        store = self._store(self._container)
        try:
            action(store)
        finally:
            os.environ["AZURE_STORAGE_CONNECTION_STRING"] = before
            store.close()

    def close(self) -> None:
        """Let go of all connections."""
        self.store.close()
        for made in self._writers:
            made.close()
        self._client.close()

    def _store(self, container: str) -> Store:
        return open_azure(parse_source(f"az://{ACCOUNT}/{container}"), Config())


def _run_as_nobody(action: Callable[[], object]) -> None:
    """Run `action` in a thread that has no rights over files, and raise what it raised."""

    def run() -> None:
        # Of this thread alone, and it takes the capabilities over files with it. Not root: no-op.
        ctypes.CDLL(None).setfsuid(65534)
        action()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
