"""Answers of a store that nobody would believe: status, headers and body as the input has them.

Nothing goes over a network: the SDK is handed the answer where it would have sent the request. Of
the input the first byte chooses what is asked, the second the status; header lines follow up to an
empty line, and the rest is the body. Only `FusefsError` may come of it, and bytes that are right.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import requests
import urllib3
from botocore.awsrequest import AWSResponse
from requests.adapters import BaseAdapter

from fusefs.config import AzureConfig, GcsConfig, S3Config
from fusefs.engine import jobs
from fusefs.errors import CorruptData, FusefsError
from fusefs.objects import Extent, ObjectId
from fusefs.store.azure import AzureStore
from fusefs.store.azure_client import AzureClient
from fusefs.store.base import Source, Store
from fusefs.store.gcs import GcsStore
from fusefs.store.s3 import S3Store

STATUSES = (200, 206, 204, 301, 304, 307, 400, 401, 403, 404, 408, 409, 412, 416, 429, 500, 503)
_ENDPOINT = "http://127.0.0.1:9"
_EXTENT = Extent(0, 4)
_RANGE = b"Content-Range: bytes 0-3/10\n"


class _Body(io.BytesIO):
    """What botocore wants of urllib3."""

    def stream(self) -> Iterator[bytes]:
        """The rest of it."""
        yield self.read()


class _Answers:
    """The answer of the input at hand.

    The mutable state of _Answers is that answer.
    """

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""

    def take(self, data: bytes) -> None:
        """Cut up an input, its first byte left out."""
        self.status = STATUSES[data[0] % len(STATUSES)]
        head, _, self.body = data[1:].partition(b"\n\n")
        lines = head.decode("latin-1").split("\n")
        self.headers = {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }


class _Adapter(BaseAdapter):
    """Answers requests of `requests` in place of a network."""

    def __init__(self, answers: _Answers) -> None:
        super().__init__()
        self._answers = answers

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """See `BaseAdapter`."""
        answers = self._answers
        response = requests.Response()
        response.status_code, response.request = answers.status, request
        response.url, response.headers = (
            str(request.url),
            requests.structures.CaseInsensitiveDict(answers.headers),
        )
        response.raw = urllib3.HTTPResponse(
            io.BytesIO(answers.body), headers=answers.headers, status=answers.status,
            preload_content=False, decode_content=False,
        )  # fmt: skip
        return response

    def close(self) -> None:
        """See `BaseAdapter`: nothing is held."""


@cache
def _s3() -> tuple[Store, _Answers]:
    store = S3Store(
        "bucket", S3Config(endpoint_url=_ENDPOINT, region="us-east-1", anonymous=True), 1
    )
    answers = _Answers()

    def answer(request: Any, **kwargs: Any) -> AWSResponse:
        return AWSResponse(request.url, answers.status, answers.headers, _Body(answers.body))

    store._client._connected().meta.events.register("before-send", answer)
    return store, answers


@cache
def _gcs() -> tuple[Store, _Answers]:
    store = GcsStore("bucket", GcsConfig(endpoint_url=_ENDPOINT, anonymous=True), 1)
    answers = _Answers()
    session = store._client._connected().session
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(answers))
    return store, answers


@cache
def _azure() -> tuple[Store, _Answers]:
    source = Source("az", "container", "", "az://account/container/", "account")
    config = AzureConfig(endpoint_url=f"{_ENDPOINT}/account", anonymous=True)
    store = AzureStore(AzureClient(source, config, 1))
    answers = _Answers()
    session = store._client._connected()[0]._transport.session
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(answers))
    return store, answers


def s3(data: bytes) -> None:
    """Amazon's XML and headers."""
    _ask(*_s3(), data, etag="e")


def gcs(data: bytes) -> None:
    """Google's JSON and headers."""
    _ask(*_gcs(), data, etag="7")


def azure(data: bytes) -> None:
    """Azure's XML and headers."""
    _ask(*_azure(), data, etag="e")


def _ask(store: Store, answers: _Answers, data: bytes, etag: str) -> None:
    if len(data) < 2:
        return
    answers.take(data[1:])
    with suppress(FusefsError):
        match data[0] % 4:
            case 0:
                page = store.list_page("p/", None)
                with suppress(CorruptData):
                    parts = jobs.page_to_parts(page)
                    assert jobs.page_from_parts(parts, page.next_token) == page
                    assert all(
                        len(jobs.encode({"part": part})) < jobs.MESSAGE_BYTES_MAX for part in parts
                    )
            case 1:
                meta = store.head("k")
                with suppress(CorruptData):
                    assert jobs.meta_from_wire(jobs.meta_to_wire(meta)) == meta
            case 2:
                buffer = bytearray(_EXTENT.size)
                store.read_into(ObjectId("k", etag), _EXTENT, memoryview(buffer))
                assert bytes(buffer) == answers.body[: _EXTENT.size]
            case 3:
                store.check("p/")


_S3_LIST = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    b"<Contents><Key>p/a</Key><ETag>&quot;e&quot;</ETag><Size>10</Size>"
    b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    b"<CommonPrefixes><Prefix>p/d/</Prefix></CommonPrefixes></ListBucketResult>"
)
_S3_ERROR = b"<Error><Code>SlowDown</Code><Message>m</Message><Region>eu-west-1</Region></Error>"
_BILLION = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(8))
    + b"]><ListBucketResult><Contents><Key>&i;</Key></Contents></ListBucketResult>"
)


def s3_seeds() -> Iterable[bytes]:
    """Answers as they are, and the usual attack on XML."""
    yield b"\0\0Content-Type: application/xml\n\n" + _S3_LIST
    yield b"\0\0\n\n" + _BILLION
    yield b"\0\x0fRetry-After: 5\nDate: x\n\n" + _S3_ERROR
    head = b'Content-Length: 10\nETag: "e"\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\n'
    yield b"\1\0" + head + b"\n"
    yield b'\2\1Content-Length: 4\nETag: "e"\n' + _RANGE + b"\nabcd"
    yield b"\3\0\n\n" + _S3_LIST
    yield b"\1\x06x-amz-bucket-region: eu-west-1\n\n"


def gcs_seeds() -> Iterable[bytes]:
    """Answers as they are."""
    item = (
        b'{"name": "p/a", "generation": "7", "size": "10",'
        b' "timeCreated": "2026-01-01T00:00:00.123Z"}'
    )
    yield b"\0\0\n\n" + b'{"items": [%s], "prefixes": ["p/d/"], "nextPageToken": "t"}' % item
    yield b"\1\0\n\n" + item
    yield b"\2\1X-Goog-Generation: 7\nContent-Length: 4\n" + _RANGE + b"\nabcd"
    yield b"\0\x0f\n\n" + b'{"error": {"code": 500, "message": "m", "errors": [{"reason": "r"}]}}'
    yield b"\1\0\n\n" + b"[" * 3000


def azure_seeds() -> Iterable[bytes]:
    """Answers as they are."""
    date = b"Thu, 01 Jan 2026 00:00:00 GMT"
    blob = (
        b"<Blob><Name>p/a</Name><Properties><Content-Length>10</Content-Length><Etag>e</Etag>"
        b"<Last-Modified>%s</Last-Modified></Properties></Blob>" % date
    )
    prefix = b'<BlobPrefix><Name Encoded="true">p/d%EF/</Name></BlobPrefix>'
    listed = (
        b"<EnumerationResults><Blobs>%s%s</Blobs><NextMarker>m</NextMarker></EnumerationResults>"
    )
    yield b"\0\0\n\n" + listed % (blob, prefix)
    yield b"\0\0\n\n" + _BILLION
    yield b'\1\0ETag: "e"\nContent-Length: 10\nLast-Modified: %s\n\n' % date
    yield b'\2\1ETag: "e"\nContent-Length: 4\n' + _RANGE + b"\nabcd"
    yield b"\1\6x-ms-error-code: InvalidHeaderValue\nContent-Length: 10\nDate: %s\n\n" % date
    yield b"\1\7x-ms-error-code: AuthenticationFailed\nDate: %s\n\n" % date
