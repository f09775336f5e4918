"""Writing to an S3 bucket, for `fusefs push`: small objects at once, large ones part by part.

Every byte is sent with its MD5 in Content-MD5, which the store checks before it takes a part. The
one idea: an attempt that was cut is found again by asking the store, not by notes on this machine.
It lists its unfinished uploads of the key and the ETags of their parts, and a part whose ETag is
the MD5 of the data is there. Where ETags are no MD5 (buckets with SSE-KMS, Cloudflare R2) none
fits, and the part is sent again.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from fusefs.config import S3Config
from fusefs.errors import FusefsError, ObjectChanged, StoreUnavailable
from fusefs.objects import ObjectMeta
from fusefs.store.base import Upload
from fusefs.store.s3_client import S3Client, object_meta
from fusefs.store.s3_errors import SDK_ERRORS, code_of, shown, translate

PART_BYTES = 8 << 20
"""As boto3's own: one part is one try, and eight of them in memory are 64 MiB."""

PARTS_MAX = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html; larger objects get larger
parts, all of one size but the last, as R2 wants it."""

SEND_TIMEOUT_S = 120.0
"""urllib3 bounds a whole send by the timeout for connecting: eight threads that send 8 MiB each
need 0.6 MB/s. Also the silence before the answer to a commit, which takes S3 minutes at worst."""


class S3Writer:
    """Obeys `fusefs.store.base.Writer` for one bucket."""

    def __init__(
        self, bucket: str, config: S3Config, connections: int, part_bytes: int = PART_BYTES
    ) -> None:
        client = S3Client(config, connections, SEND_TIMEOUT_S, SEND_TIMEOUT_S)
        self._bucket = _Bucket(bucket, client)
        self._part_bytes = part_bytes

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        what = self._bucket.writing(key)
        answer = self._bucket.call(
            what, "put_object", Key=key, Body=data, ContentMD5=_base64(_md5(memoryview(data)))
        )
        return self._bucket.confirm(key, len(data), answer.get("ETag", ""))

    def begin(self, key: str, size: int) -> Upload:
        """See `Writer`. Of several attempts, that with the most parts is gone on with."""
        part_bytes = self._part_bytes
        while size > part_bytes * PARTS_MAX:
            part_bytes *= 2
        upload_id, held = "", dict[int, str]()
        for found in self._unfinished(key):
            if found["Key"] != key:
                continue
            parts = self._parts(key, found["UploadId"])
            if not upload_id or len(parts) > len(held):
                upload_id, held = found["UploadId"], parts
        if not upload_id:
            answer = self._bucket.call(
                self._bucket.writing(key), "create_multipart_upload", Key=key
            )
            upload_id = answer["UploadId"]
        return S3Upload(self._bucket, key, size, part_bytes, upload_id, held)

    def delete(self, key: str) -> None:
        """See `Writer`. In a bucket with versions the old ones stay, as its owner wants it."""
        self._bucket.call(f"the removal of {shown(key)}", "delete_object", Key=key)

    def discard(self, prefix: str) -> int:
        """See `Writer`."""
        found = list(self._unfinished(prefix))
        for upload in found:
            key, upload_id = upload["Key"], upload["UploadId"]
            try:
                self._bucket.ask("abort_multipart_upload", Key=key, UploadId=upload_id)
            except SDK_ERRORS as error:
                if _is_gone(error):
                    continue  # it ended meanwhile, which is what was wanted
                raise translate(error, f"the end of an upload of {shown(key)}") from error
        return len({upload["Key"] for upload in found})

    def publish(self, prefix: str) -> None:
        """See `Writer`: objects appear one by one here, each of them whole."""

    def close(self) -> None:
        """See `Writer`."""
        self._bucket.close()

    def _unfinished(self, prefix: str) -> Iterator[dict[str, Any]]:
        """All unfinished uploads of keys that begin with `prefix`."""
        what = f"the list of unfinished uploads in {self._bucket}"
        place: dict[str, str] = {}
        while True:
            page = self._bucket.call(what, "list_multipart_uploads", Prefix=prefix, **place)
            yield from page.get("Uploads", ())
            following = {
                "KeyMarker": page.get("NextKeyMarker") or "",
                "UploadIdMarker": page.get("NextUploadIdMarker") or "",
            }
            if not page.get("IsTruncated"):
                return
            if not following["KeyMarker"] or following == place:
                raise StoreUnavailable(f"{what} does not go on: the store names no next page")
            place = following

    def _parts(self, key: str, upload_id: str) -> dict[int, str]:
        """The parts an upload has: ETag by index, from 0."""
        what = self._bucket.writing(key)
        parts: dict[int, str] = {}
        marker = 0
        while True:
            page = self._bucket.call(
                what, "list_parts", Key=key, UploadId=upload_id, PartNumberMarker=marker
            )
            parts |= {p["PartNumber"] - 1: p["ETag"].strip('"') for p in page.get("Parts", ())}
            following = int(page.get("NextPartNumberMarker") or 0)
            if not page.get("IsTruncated"):
                return parts
            if following <= marker:
                raise StoreUnavailable(f"{what} does not go on: the store names no next page")
            marker = following


class S3Upload:
    """Obeys `fusefs.store.base.Upload`: one multipart upload.

    `held` are the parts that were there at the start, ETag by index.
    """

    def __init__(
        self,
        bucket: _Bucket,
        key: str,
        size: int,
        part_bytes: int,
        upload_id: str,
        held: dict[int, str],
    ) -> None:
        self.part_bytes = part_bytes
        self._bucket = bucket
        self._key = key
        self._size = size
        self._upload_id = upload_id
        self._held = held
        # The mutable state of S3Upload is the ETag of each part that is known to be there. Each
        # index is written by the one thread that puts that part.
        self._etags: dict[int, str] = {}

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        digest = _md5(data)
        if self._held.get(index) == digest.hex():
            self._etags[index] = digest.hex()
            return False
        answer = self._bucket.call(
            f"part {index + 1} of {self._bucket.writing(self._key)}",
            "upload_part",
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=index + 1,
            Body=bytes(data),  # the SDK takes no view
            ContentMD5=_base64(digest),
        )
        self._etags[index] = answer["ETag"].strip('"')
        return True

    def commit(self) -> ObjectMeta:
        """See `Upload`. Parts are named by ETag: another writer's in their place are refused."""
        what = self._bucket.writing(self._key)
        count = -(-self._size // self.part_bytes)
        if sorted(self._etags) != list(range(count)):
            raise FusefsError(f"{what} cannot end: {len(self._etags)} of {count} parts are there")
        etags = [self._etags[index] for index in range(count)]
        parts = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in enumerate(etags, 1)]
        try:
            answer = self._bucket.ask(
                "complete_multipart_upload",
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
            )
        except SDK_ERRORS as error:
            # Maybe this is the second try, and only the answer to the first was lost.
            if not _is_gone(error):
                raise translate(error, what) from error
            return self._bucket.confirm(self._key, self._size, _etag_of_parts(etags))
        return self._bucket.confirm(self._key, self._size, answer.get("ETag", ""))


class _Bucket:
    """Requests to one bucket, and the sentences about them."""

    def __init__(self, name: str, client: S3Client) -> None:
        self._name = name
        self._client = client

    def __str__(self) -> str:
        return f"bucket {self._name!r}"

    def writing(self, key: str) -> str:
        """The subject of a sentence."""
        return f"the writing of {shown(key)} in {self}"

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises what the SDK raises."""
        return self._client.call(operation, Bucket=self._name, **arguments)

    def call(self, what: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises `FusefsError`."""
        try:
            return self.ask(operation, **arguments)
        except SDK_ERRORS as error:
            raise translate(error, what) from error

    def confirm(self, key: str, size: int, etag: str) -> ObjectMeta:
        """What the store says of the object that was just written."""
        what = self.writing(key)
        head = self.call(what, "head_object", Key=key)
        try:
            meta = object_meta(key, head["ETag"], head["ContentLength"], head["LastModified"])
        except KeyError as error:
            raise StoreUnavailable(f"{what} cannot be confirmed: {error} is missing") from error
        if meta.size != size or meta.id.etag != etag.strip('"'):
            raise ObjectChanged(f"{what} was overtaken: somebody else wrote it, too")
        return meta

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        self._client.close()


def _is_gone(error: Exception) -> bool:
    """Whether the upload has ended, by commit or abort."""
    return isinstance(error, ClientError) and code_of(error) == "NoSuchUpload"


def _etag_of_parts(etags: list[str]) -> str:
    """What S3 calls an object made of these parts, or "" where their ETags are no MD5."""
    try:
        digests = b"".join(bytes.fromhex(etag) for etag in etags)
    except ValueError:
        return ""
    return f"{_md5(memoryview(digests)).hex()}-{len(etags)}"


def _md5(data: memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
