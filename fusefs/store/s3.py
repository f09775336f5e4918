"""An S3 bucket, Amazon's or any server that speaks its protocol, through boto3.

The client is `fusefs.store.s3_client`'s; writing is `fusefs.store.s3_write`'s. The one idea here:
an answer is checked in full (status, ETag, Content-Length, Content-Range) before its first byte is
written, and then the bytes go from the socket straight into the buffer.

If-Match is all that pins a version, in buckets with versions, too. Their old versions could be had
by versionId after an overwrite; they are not asked for, since whoever then opens the next shard of
the model would get the new one, and a mixture of two models is worse than an error.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

from fusefs.config import Config, S3Config
from fusefs.errors import CorruptData, ObjectChanged, ObjectNotFound, StoreUnavailable, Unsupported
from fusefs.objects import Checksums, Extent, ListPage, ObjectId, ObjectMeta
from fusefs.policy.budget import CONNECTIONS_MAX
from fusefs.store.base import LIST_PAGE_KEYS, Source, Store, Writer, silence_s
from fusefs.store.http_body import check_content_range, receive
from fusefs.store.s3_checksums import find_checksums
from fusefs.store.s3_client import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    S3Client,
    load_models,
    object_meta,
)
from fusefs.store.s3_errors import SDK_ERRORS, shown, translate, translate_read
from fusefs.store.s3_write import S3Writer


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
        self._client = S3Client(config, connections, connect_timeout_s, read_timeout_s)

    def check(self, prefix: str) -> None:
        """See `Store`. Anything below the prefix will do, at any depth."""
        where = f"the bucket {self._bucket!r} at {self._client.endpoint()}"
        try:
            page = self._client.call(
                "list_objects_v2", Bucket=self._bucket, Prefix=prefix, MaxKeys=1
            )
        except SDK_ERRORS as error:
            raise translate(error, where) from error
        if prefix and not page.get("Contents"):
            raise ObjectNotFound(f"{where} holds no object below {shown(prefix)}")

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`."""
        what = f"the listing of {shown(prefix)} in bucket {self._bucket!r}"
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        if token is not None:
            arguments["ContinuationToken"] = token
        try:
            page = self._client.call("list_objects_v2", MaxKeys=LIST_PAGE_KEYS, **arguments)
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
                object_meta(item["Key"], item.get("ETag", ""), item["Size"], item["LastModified"])
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
            head = self._client.call("head_object", Bucket=self._bucket, Key=key)
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        try:
            return object_meta(key, head["ETag"], head["ContentLength"], head["LastModified"])
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
            answer = self._client.call(
                "get_object",
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

    def checksums(self, id: ObjectId) -> Checksums | None:
        """See `fusefs.store.checksums.KnowsChecksums`."""
        return find_checksums(self._client, self._bucket, id)

    def close(self) -> None:
        """See `Store`."""
        self._client.close()

    def _object(self, key: str) -> str:
        """The subject of a sentence."""
        return f"the object {shown(key)} in bucket {self._bucket!r}"


def open_store(source: Source, config: Config) -> Store:
    """Make the store of an `s3://` source."""
    return S3Store(
        source.bucket,
        config.s3,
        config.engine.connections or CONNECTIONS_MAX,
        read_timeout_s=silence_s(READ_TIMEOUT_S, config.engine.read_deadline_s),
    )


def open_writer(source: Source, config: Config) -> Writer:
    """Make what writes to the place that an `s3://` source names."""
    return S3Writer(source.bucket, config.s3, config.engine.connections or CONNECTIONS_MAX)


def preload() -> None:
    """See `source.preload`."""
    load_models()


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
