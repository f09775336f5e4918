"""A bucket at Google Cloud Storage, or at a server that speaks its JSON API.

The SDK's downloads are not used: they copy, sum, and retry in chunks of their own. The one idea: a
read asks for one generation, its answer is checked in full (status, generation, encoding, length,
Content-Range) before its first byte is written, and then the bytes go from the socket straight into
the buffer.
"""

from __future__ import annotations

import base64
import http.client
import importlib
from collections.abc import Callable, Mapping

from fusefs.config import Config, GcsConfig
from fusefs.errors import (
    AccessDenied,
    CorruptData,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import Checksums, Extent, ListPage, ObjectId, ObjectMeta
from fusefs.policy.budget import CONNECTIONS_MAX
from fusefs.policy.crc import CRC32C
from fusefs.store.base import LIST_PAGE_KEYS, Source, Store, Writer, silence_s
from fusefs.store.gcs_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, GcsClient, meta_of, shown
from fusefs.store.gcs_errors import SDK_ERRORS, translate, translate_read
from fusefs.store.gcs_write import GcsWriter
from fusefs.store.http_body import check_content_range, receive

_OBJECT_FIELDS = "name,generation,size,timeCreated"
_FIELDS = f"items({_OBJECT_FIELDS}),prefixes,nextPageToken"
"""What is read of a listing: a quarter of what Google would send."""

_CREDENTIAL_MODULES = (
    "google.auth.compute_engine",
    "google.auth.identity_pool",
    "google.oauth2.credentials",
    "google.oauth2.service_account",
)
"""What google-auth imports only once it has found credentials of that kind."""


class GcsStore:
    """Obeys `fusefs.store.base.Store` for one bucket.

    The etag of an `ObjectId` is the object's generation, in decimal. `connections` is how many idle
    connections are kept: the number of threads that use the store.
    """

    def __init__(
        self,
        bucket: str,
        config: GcsConfig,
        connections: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        timeouts_s = (connect_timeout_s, read_timeout_s)
        self._client = GcsClient(bucket, config, "read_only", connections, timeouts_s)

    def check(self, prefix: str) -> None:
        """See `Store`. Anything below the prefix will do, at any depth."""
        where = self._client.where
        query = {"prefix": prefix, "maxResults": "1", "fields": _FIELDS}
        page = self._client.list_page(where, None, query)
        while prefix and not page.items:
            if page.token is None:
                raise ObjectNotFound(f"{where} holds no object below {shown(prefix)}")
            # Google may answer with an empty page that another follows. It rarely does.
            page = self._client.list_page(where, page.token, query)

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`."""
        what = f"the listing of {shown(prefix)} in bucket {self._client.name!r}"
        try:
            prefix.encode()
        except UnicodeEncodeError:
            return ListPage((), (), None)  # bytes that are not UTF-8: no key of a bucket holds them
        query = {"prefix": prefix, "delimiter": "/", "fields": _FIELDS}
        page = self._client.list_page(what, token, {**query, "maxResults": str(LIST_PAGE_KEYS)})
        objects = tuple(meta_of(item, what) for item in page.items)
        return ListPage(objects, page.prefixes, page.token)

    def head(self, key: str) -> ObjectMeta:
        """See `Store`."""
        what = self._client.object(key)
        try:
            path = f"/storage/v1{self._client.path(key)}"
            resource = self._client.ask("GET", path, {"fields": _OBJECT_FIELDS})
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        return meta_of(resource, what)

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`. Of an object stored with gzip the bytes as they are stored."""
        what = self._client.object(id.key)
        if not id.etag:
            raise Unsupported(f"{what} has no generation, so its versions cannot be told apart")
        try:
            answer = self._client.send(
                "GET",
                f"/download/storage/v1{self._client.path(id.key)}",
                {"alt": "media", "generation": id.etag},
                headers={
                    "Range": f"bytes={extent.start}-{extent.stop - 1}",
                    # Without it Google decompresses what is stored with gzip, and ignores Range.
                    "Accept-Encoding": "gzip",
                },
            )
        except SDK_ERRORS as error:
            # Raised at once: a failure kept in a variable would be in a cycle with its own
            # traceback, and hold `buffer` and a socket until the next garbage collection.
            raise translate_read(error, what) from error
        try:
            _check_answer(answer.status_code, answer.headers, id, extent, what)
            receive(answer.raw, answer.raw, buffer, landed, what)
        except SDK_ERRORS as error:
            answer.close()
            raise translate(error, what) from error
        except BaseException:
            # Whatever stopped us, a connection with unread bytes must not go back to the pool.
            answer.close()
            raise

    def checksums(self, id: ObjectId) -> Checksums | None:
        """See `fusefs.store.checksums.KnowsChecksums`: Google has a CRC32C of every object."""
        what = self._client.object(id.key)
        query = {"generation": id.etag, "fields": "crc32c,size"}
        try:
            resource = self._client.ask("GET", f"/storage/v1{self._client.path(id.key)}", query)
            size = int(resource["size"])
            value = int.from_bytes(base64.b64decode(resource["crc32c"], validate=True))
        except SDK_ERRORS as error:
            translated = translate(error, what)
            if isinstance(translated, (ObjectNotFound, AccessDenied)):
                return None  # whether it can be read, reading tells
            raise translated from error
        except (KeyError, TypeError):
            return None  # it says nothing of the kind
        return Checksums(CRC32C, (size,), (value,)) if size > 0 else None

    def close(self) -> None:
        """See `Store`."""
        self._client.close()


def open_store(source: Source, config: Config) -> Store:
    """Make the store of a `gs://` source."""
    return GcsStore(
        source.bucket,
        config.gcs,
        config.engine.connections or CONNECTIONS_MAX,
        read_timeout_s=silence_s(READ_TIMEOUT_S, config.engine.read_deadline_s),
    )


def open_writer(source: Source, config: Config) -> Writer:
    """Make what writes to a `gs://` source."""
    connections = config.engine.connections or CONNECTIONS_MAX
    return GcsWriter(source.bucket, source.prefix, config.gcs, connections)


def preload() -> None:
    """Import what making a client imports late, so that forked workers share it.

    No client is made: that would look for credentials.
    """
    for name in _CREDENTIAL_MODULES:
        importlib.import_module(name)


def _check_answer(
    status: int, headers: Mapping[str, str], id: ObjectId, extent: Extent, what: str
) -> None:
    """Raise unless the body that follows is exactly this extent of this version."""
    generation, length = headers.get("X-Goog-Generation"), headers.get("Content-Length")
    content_range = headers.get("Content-Range")
    encoding = headers.get("Content-Encoding") or "identity"
    if headers.get("X-Goog-Stored-Content-Encoding", "identity") != encoding:
        raise CorruptData(f"{what} came in another encoding than it is stored in ({encoding})")
    # http.client takes a connection that breaks inside the head for the end of the head, so what is
    # missing says nothing about the object: it may be there at the next try.
    torn = generation is not None and id.etag != generation and id.etag.startswith(generation)
    partial = status == http.client.PARTIAL_CONTENT
    if torn or generation is None or length is None or (partial and content_range is None):
        raise StoreUnavailable(f"{what} came with an incomplete head (status {status})")
    if generation != id.etag:
        raise ObjectChanged(f"{what} was overwritten")
    if not length.isdecimal() or int(length) != extent.size:
        raise CorruptData(f"{what} came with a wrong Content-Length (status {status})")
    if partial:
        check_content_range(content_range, extent, what)
    elif status != http.client.OK or extent.start != 0:
        # 200 is the whole object: fine if it is what was asked for, and its length says so.
        raise CorruptData(f"{what} came whole where a range was asked for (status {status})")
