"""An S3 bucket, Amazon's or any server that speaks its protocol, through boto3.

boto3 and botocore, the client inside it, sign, find credentials and regions, and keep connections.
They are told not to retry, since the fetcher does. The one idea here: an answer is checked in full
(status, ETag, Content-Length, Content-Range) before its first byte is written, and then the bytes
go from the socket straight into the buffer.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore
import botocore.loaders
import botocore.session
import botocore.utils
from botocore.config import Config as SdkConfig
from botocore.exceptions import BotoCoreError, ClientError

import fusefs
from fusefs.config import Config, S3Config
from fusefs.errors import (
    ConfigError,
    CorruptData,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta
from fusefs.policy.budget import CONNECTIONS_MAX
from fusefs.store.base import LIST_PAGE_KEYS, Source, Store
from fusefs.store.http_body import check_content_range, receive
from fusefs.store.s3_errors import SDK_ERRORS, translate, translate_read

CONNECT_TIMEOUT_S = 5.0
"""Linux repeats a lost SYN after 1 s and 3 s: two may be lost, and a dead address costs no more."""

READ_TIMEOUT_S = 20.0
"""Silence, not duration: the longest wait for the next bytes. S3's slowest first bytes take a few
seconds; 20 s leaves time for six tries within the default `read_deadline_s` of 120 s."""

_loader = botocore.loaders.Loader()
"""Caches botocore's JSON models: 11 MB, the same for every session, shared by forked workers."""

_client_lock = threading.Lock()
"""Making a client is not thread-safe in botocore (its models are parsed in place)."""


class S3Store:
    """Obeys `fusefs.store.base.Store` for one bucket.

    The etag of an `ObjectId` is the ETag without its quotes. `connections` is how many idle
    connections are kept: the number of threads that use the store.
    """

    def __init__(
        self,
        bucket: str,
        config: S3Config,
        connections: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._bucket = bucket
        self._config = config
        self._connections = connections
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        # The mutable state of S3Store is its client, made by the first request: making it looks for
        # credentials, which may ask a metadata service.
        self._client: Any = None

    def check(self, prefix: str) -> None:
        """See `Store`. Anything below the prefix will do, at any depth."""
        client = self._connected()
        where = f"the bucket {self._bucket!r} at {client.meta.endpoint_url}"
        try:
            page = client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=1)
        except SDK_ERRORS as error:
            raise translate(error, where) from error
        if prefix and not page.get("Contents"):
            raise ObjectNotFound(f"{where} holds no object below {_shown(prefix)}")

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`."""
        what = f"the listing of {_shown(prefix)} in bucket {self._bucket!r}"
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        if token is not None:
            arguments["ContinuationToken"] = token
        try:
            page = self._connected().list_objects_v2(MaxKeys=LIST_PAGE_KEYS, **arguments)
        except UnicodeEncodeError:
            return ListPage((), (), None)  # bytes that are not UTF-8: no key of a bucket holds them
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        following = page.get("NextContinuationToken") if page.get("IsTruncated") else None
        if page.get("IsTruncated") and following in (None, token):
            raise CorruptData(f"{what} does not go on: the store names no next page")
        try:
            objects = tuple(
                # Without an ETag it can be listed, though not read.
                _meta(item["Key"], item.get("ETag", ""), item["Size"], item["LastModified"])
                for item in page.get("Contents", ())
            )
        except KeyError as error:
            raise StoreUnavailable(f"{what} came without {error}") from error
        prefixes = tuple(item["Prefix"] for item in page.get("CommonPrefixes", ()))
        return ListPage(objects, prefixes, following)

    def head(self, key: str) -> ObjectMeta:
        """See `Store`."""
        what = self._object(key)
        try:
            head = self._connected().head_object(Bucket=self._bucket, Key=key)
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        try:
            return _meta(key, head["ETag"], head["ContentLength"], head["LastModified"])
        except KeyError as error:
            raise StoreUnavailable(f"{what} came without {error}") from error

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        what = self._object(id.key)
        if not id.etag:
            raise Unsupported(f"{what} has no ETag, so its versions cannot be told apart")
        try:
            answer = self._connected().get_object(
                Bucket=self._bucket,
                Key=id.key,
                Range=f"bytes={extent.start}-{extent.stop - 1}",
                IfMatch=f'"{id.etag}"',
            )
        except SDK_ERRORS as error:
            # Raised at once: a failure kept in a variable would be in a cycle with its own
            # traceback, and hold `buffer` and a socket until the next garbage collection.
            raise translate_read(error, what) from error
        body = answer["Body"]
        try:
            _check_answer(answer, id, extent, what)
            receive(body, getattr(body, "_raw_stream", None), buffer, landed, what)
        except SDK_ERRORS as error:
            body.close()
            raise translate(error, what) from error
        except BaseException:
            # Whatever stopped us, a connection with unread bytes must not go back to the pool.
            body.close()
            raise

    def close(self) -> None:
        """See `Store`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _object(self, key: str) -> str:
        """The subject of a sentence."""
        return f"the object {_shown(key)} in bucket {self._bucket!r}"

    def _connected(self) -> Any:
        if self._client is None:
            with _client_lock:
                if self._client is None:
                    self._client = _make_client(self._config, self._connections, *self._timeouts_s)
        return self._client


def open_store(source: Source, config: Config) -> Store:
    """Make the store of an `s3://` source."""
    return S3Store(source.bucket, config.s3, config.engine.connections or CONNECTIONS_MAX)


def preload() -> None:
    """Load the models that every client of this process, and of its forks, then shares.

    These are the calls that making a client makes, with the same arguments, since the loader caches
    by those. No client is made: that would look for credentials.
    """
    for name in ("service-2", "endpoint-rule-set-1"):
        _loader.load_service_model("s3", name, api_version=None)
    for name in ("sdk-default-configuration", "partitions"):
        _loader.load_data(name)
    _loader.load_data_with_path("endpoints")


def _make_session(profile: str | None) -> Any:
    core = botocore.session.Session(profile=profile)
    core.register_component("data_loader", _loader)
    parsers = core.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_timestamp)
    return boto3.session.Session(botocore_session=core)


def _make_client(
    config: S3Config, connections: int, connect_timeout_s: float, read_timeout_s: float
) -> Any:
    # Without a wish, botocore takes path style for every endpoint but Amazon's own, since a server
    # on a plain host has no DNS names for its buckets; ~/.aws/config may say otherwise.
    style = {None: None, True: "path", False: "virtual"}[config.path_style]
    sdk_config = SdkConfig(
        # Said in full: botocore's own takes 0.1 of the 0.85 ms of CPU that a request costs.
        user_agent=f"fusefs/{fusefs.__version__} botocore/{botocore.__version__}",
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=connections,
        # Middleboxes forget idle connections: AWS NAT gateways after 350 s, others sooner.
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # S3's checksums cover whole objects, and a range cannot be checked against one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style} if style else None,
    )
    try:
        client = _make_session(config.profile).client(
            "s3",
            region_name=config.region,
            endpoint_url=config.endpoint_url,
            config=sdk_config,
        )
        endpoint = urlsplit(client.meta.endpoint_url)
    except (BotoCoreError, ClientError, OSError) as error:
        raise translate(error, "the S3 client") from error
    except ValueError as error:
        raise ConfigError("the S3 endpoint is not a URL like https://host[:port]") from error
    if endpoint.username is not None or endpoint.password is not None:
        raise ConfigError("the S3 endpoint holds credentials: leave them to the AWS environment")
    return client


def _meta(key: str, etag: str, size: int, modified: datetime) -> ObjectMeta:
    # Whole seconds: a HEAD tells no more, and the two must agree.
    return ObjectMeta(ObjectId(key, etag.strip('"')), size, int(modified.timestamp()) * 10**9)


def _parse_timestamp(text: Any) -> datetime:
    """A datetime from what S3 writes; anything else goes botocore's way.

    Listings write ISO 8601 and headers RFC 9110: 0.5 and 5 us here, 32 and 45 us in dateutil, which
    botocore uses, for each object of a page and for each GetObject.
    """
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(AttributeError, TypeError, ValueError):
            moment = parse(text)
            if moment.tzinfo is not None:
                return moment
    parsed: datetime = botocore.utils.parse_timestamp(text)
    return parsed


def _shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 bytes if it has them."""
    text = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def _check_answer(answer: dict[str, Any], id: ObjectId, extent: Extent, what: str) -> None:
    """Raise unless the body of a GetObject answer is exactly this extent of this version."""
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    etag, length = answer.get("ETag"), answer.get("ContentLength")
    content_range = answer.get("ContentRange")
    # http.client takes a connection that breaks inside the head for the end of the head, so what is
    # missing says nothing about the object: it may be there at the next try.
    torn = etag is not None and etag.startswith('"') and not etag.endswith('"')
    partial = status == http.client.PARTIAL_CONTENT
    if torn or etag is None or length is None or (partial and content_range is None):
        raise StoreUnavailable(f"{what} came with an incomplete head (status {status})")
    if etag.strip('"') != id.etag:
        raise ObjectChanged(f"{what} was overwritten")
    if length != extent.size:
        raise CorruptData(f"{what} came with a wrong Content-Length (status {status})")
    if partial:
        check_content_range(content_range, extent, what)
    elif status != http.client.OK or extent.start != 0:
        # 200 is the whole object: fine if it is what was asked for, and its length says so.
        raise CorruptData(f"{what} came whole where a range was asked for (status {status})")
