"""A container of Azure Blob, Azure's own or any server that speaks its protocol.

The SDK signs and sends (`fusefs.store.azure_client`); here is what operations mean. The one idea is
that of the S3 store: an answer is checked in full (status, ETag, Content-Length, Content-Range)
before its first byte is written, and then the bytes go from the socket straight into the buffer.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote
from xml.etree.ElementTree import Element

from fusefs.config import Config
from fusefs.errors import (
    ChecksumMismatch,
    CorruptData,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta
from fusefs.policy.budget import CONNECTIONS_MAX
from fusefs.policy.crc import CRC64NVME, find_computing
from fusefs.store.azure_client import KEY, READ_TIMEOUT_S, SAS_TOKEN, AzureClient
from fusefs.store.azure_errors import SDK_ERRORS, translate, translate_read
from fusefs.store.azure_source import CONNECTION_STRING
from fusefs.store.base import LIST_PAGE_KEYS, Source, Store, Writer, silence_s
from fusefs.store.http_body import check_content_range, receive
from fusefs.store.http_errors import SENSELESS

SUMMED_BYTES_MAX = 4 << 20
"""https://learn.microsoft.com/rest/api/storageservices/get-blob: of larger ranges Azure sends no
sum, but status 400."""

_SUM = "x-ms-content-crc64"
"""Its polynomial is that of CRC64NVME; in base64, the least byte first."""

_NOT_KNOWN = frozenset({"FeatureNotSupported", "UnsupportedHeader"})
"""What servers call it that speak Azure's protocol and compute no CRC64, Azurite's first."""


class AzureStore:
    """Obeys `fusefs.store.base.Store` for one container.

    The etag of an `ObjectId` is the ETag without its quotes. Directories of accounts with a
    hierarchical namespace, and the markers that older tools leave for them, are no objects.
    Snapshots and versions are not shown.
    """

    def __init__(self, client: AzureClient) -> None:
        self._client = client

    def check(self, prefix: str) -> None:
        """See `Store`. Anything below the prefix will do, at any depth."""
        where = self._client.where
        page = self._client.ask_xml(where, "", listing(prefix, maxresults="1"))
        # Azure may answer with an empty page and more to come: then it cannot be told, and passes.
        if prefix and page.find("./Blobs/Blob") is None and not page.findtext("NextMarker"):
            raise ObjectNotFound(f"{where} holds no object below {shown(prefix)}")

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`. The metadata is asked for because some directory markers are told by it."""
        what = f"the listing of {shown(prefix)} in container {self._client.container!r}"
        more = {"marker": token} if token is not None else {}
        try:
            query = listing(
                prefix, delimiter="/", include="metadata", maxresults=str(LIST_PAGE_KEYS), **more
            )
        except UnicodeEncodeError:
            return ListPage((), (), None)  # bytes that are not UTF-8: no name of a blob holds them
        page = self._client.ask_xml(what, "", query)
        following = page.findtext("NextMarker") or None
        if following is not None and following == token:
            raise CorruptData(f"{what} does not go on: the store names the same page again")
        try:
            if page.tag != "EnumerationResults":
                raise ValueError(page.tag)
            objects = tuple(
                _listed(item) for item in page.iterfind("./Blobs/Blob") if _is_file(item)
            )
            prefixes = tuple(name_of(item) for item in page.iterfind("./Blobs/BlobPrefix"))
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        return ListPage(objects, prefixes, following)

    def head(self, key: str) -> ObjectMeta:
        """See `Store`."""
        return head_of(self._client, key)

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        self._read(id, extent, buffer, landed)

    def read_summed_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `fusefs.engine.verifier.SumsRanges`. One request for each 4 MiB."""
        compute = find_computing(CRC64NVME)
        for start in range(extent.start, extent.stop, SUMMED_BYTES_MAX):
            part = Extent(start, min(start + SUMMED_BYTES_MAX, extent.stop))
            at = start - extent.start
            view = buffer[at : at + part.size]

            self._read(id, part, view, None, compute)
            if landed is not None:
                landed(at + part.size)

    def _read(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None,
        compute: Callable[[memoryview], int] | None = None,
    ) -> None:
        """One range; with `compute`, which is of its CRC64, compared with what the server says."""
        what = subject(self._client, id.key)
        if not id.etag:
            raise Unsupported(f"{what} has no ETag, so its versions cannot be told apart")
        headers = {
            # Not `Range`, whose place in what is signed the SDK leaves empty.
            "x-ms-range": f"bytes={extent.start}-{extent.stop - 1}",
            "If-Match": f'"{id.etag}"',
        }
        if compute is not None:
            headers["x-ms-range-get-content-crc64"] = "true"
        try:
            answer = self._client.send("GET", id.key, "", headers, stream=True)
        except SDK_ERRORS as error:
            raise translate_read(translate(error, what)) from error
        except ObjectNotFound as error:
            raise translate_read(error) from error
        if answer.status_code >= 300:
            if compute and answer.headers.get("x-ms-error-code") in _NOT_KNOWN:
                answer.close()
                raise _without_sum(what)
            raise translate_read(self._client.refusal(answer, what))
        try:
            _check_answer(answer, id, extent, what)
            if compute is not None:
                landed = _comparing(compute, buffer, answer.headers, what)
            receive(answer.raw, answer.raw, buffer, landed, what)
        except SDK_ERRORS as error:
            answer.close()
            raise translate(error, what) from error
        except BaseException:
            # Whatever stopped us, a connection with unread bytes must not go back to the pool.
            answer.close()
            raise

    def close(self) -> None:
        """See `Store`."""
        self._client.close()


def open_store(source: Source, config: Config) -> Store:
    """Make the store of an `az://` source."""
    return AzureStore(_client(source, config))


def open_writer(source: Source, config: Config) -> Writer:
    """Make the writer of an `az://` source."""
    from fusefs.store.azure_write import AzureWriter

    return AzureWriter(_client(source, config))


def preload() -> None:
    """Import what an identity needs, unless the environment has other credentials."""
    if not any(os.environ.get(name) for name in (CONNECTION_STRING, KEY, SAS_TOKEN)):
        with suppress(ModuleNotFoundError):
            importlib.import_module("azure.identity")


def head_of(client: AzureClient, key: str) -> ObjectMeta:
    """One request: the current version of `key`. Raises `ObjectNotFound` and like `Store`."""
    what = subject(client, key)
    headers = client.ask("HEAD", what, key).headers
    if headers.get("x-ms-meta-hdi_isfolder", "").lower() == "true":
        raise ObjectNotFound(f"{what} does not exist: it is a directory")
    try:
        return _meta(key, headers["ETag"], int(headers["Content-Length"]), headers["Last-Modified"])
    except (KeyError, TypeError, *SENSELESS) as error:
        raise StoreUnavailable(f"{what} came with an incomplete head") from error


def subject(client: AzureClient, key: str) -> str:
    """The subject of a sentence about one blob."""
    return f"the object {shown(key)} in container {client.container!r}"


def shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 characters if it has them."""
    text = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def _client(source: Source, config: Config) -> AzureClient:
    return AzureClient(
        source,
        config.azure,
        config.engine.connections or CONNECTIONS_MAX,
        read_timeout_s=silence_s(READ_TIMEOUT_S, config.engine.read_deadline_s),
    )


def listing(prefix: str, **more: str) -> str:
    """The query of a List Blobs request."""
    asked = {"restype": "container", "comp": "list", "prefix": prefix, **more}
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items() if value)


def _is_file(item: Element) -> bool:
    marker = item.findtext("./Metadata/hdi_isfolder", "") or ""
    kind = item.findtext("./Properties/ResourceType", "") or ""
    return marker.lower() != "true" and kind.lower() != "directory"


def _listed(item: Element) -> ObjectMeta:
    properties = item.find("Properties")
    if properties is None:
        raise ValueError("no Properties")
    # Without an ETag it can be listed, though not read.
    return _meta(
        name_of(item),
        properties.findtext("Etag") or "",
        int(properties.findtext("Content-Length") or ""),
        properties.findtext("Last-Modified") or "",
    )


def name_of(item: Element) -> str:
    """The name of a blob or prefix of a listing. Raises `ValueError`."""
    name = item.find("Name")
    if name is None or not name.text:
        raise ValueError("no Name")
    # Names with characters that XML cannot hold are percent-encoded, and say so.
    return unquote(name.text, errors="strict") if name.get("Encoded") == "true" else name.text


def _meta(key: str, etag: str, size: int, modified: str) -> ObjectMeta:
    mtime_s = int(parsedate_to_datetime(modified).timestamp())
    return ObjectMeta(ObjectId(key, etag.strip('"')), size, mtime_s * 10**9)


def _comparing(
    compute: Callable[[memoryview], int], buffer: memoryview, headers: Mapping[str, str], what: str
) -> Callable[[int], None]:
    """A `landed` that compares the whole buffer, once it is full, with the sum in the head.

    Raises there, so that the connection is not used again; and ValueError for a head that broke.
    """
    if _SUM not in headers:
        raise _without_sum(what)
    expected = int.from_bytes(base64.b64decode(headers[_SUM], validate=True), "little")

    def landed(size: int) -> None:
        if size == len(buffer) and compute(buffer) != expected:
            raise ChecksumMismatch(f"{what} came with wrong bytes: not those of its CRC64")

    return landed


def _without_sum(what: str) -> Unsupported:
    return Unsupported(f"{what} comes without checksums: the server makes none of ranges")


def _check_answer(answer: Any, id: ObjectId, extent: Extent, what: str) -> None:
    """Raise unless the body of a Get Blob answer is exactly this extent of this version."""
    status, headers = answer.status_code, answer.headers
    etag, length = headers.get("ETag"), headers.get("Content-Length")
    content_range = headers.get("Content-Range")
    # http.client takes a connection that breaks inside the head for the end of the head, so what is
    # missing says nothing about the object: it may be there at the next try.
    torn = etag is not None and etag.startswith('"') and not (len(etag) > 1 and etag.endswith('"'))
    partial = status == http.client.PARTIAL_CONTENT
    if torn or etag is None or length is None or (partial and content_range is None):
        raise StoreUnavailable(f"{what} came with an incomplete head (status {status})")
    if etag.strip('"') != id.etag:
        raise ObjectChanged(f"{what} was overwritten")
    if int(length) != extent.size:
        raise CorruptData(f"{what} came with a wrong Content-Length (status {status})")
    if partial:
        check_content_range(content_range, extent, what)
    elif status != http.client.OK or extent.start != 0:
        # 200 is the whole object: fine if it is what was asked for, and its length says so.
        raise CorruptData(f"{what} came whole where a range was asked for (status {status})")
