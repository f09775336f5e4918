"""The checksums that S3 keeps of its objects, as far as they are CRCs.

S3 has one CRC for a whole object, or, of an upload in parts, one for each part. The one idea: a
HEAD tells the former, and that it is the latter; then GetObjectAttributes is asked for the parts.
Both answers name the ETag that they are of. A SHA-1 or SHA-256 is of no use here: those of parts
cannot be put together, and a mount sees no part in one piece.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from typing import Any

from fusefs.errors import AccessDenied, FusefsError, ObjectChanged, ObjectNotFound, Unsupported
from fusefs.objects import Checksums, ObjectId
from fusefs.policy.crc import CRC32, CRC32C, CRC64NVME, SIZES
from fusefs.store.s3_client import S3Client
from fusefs.store.s3_errors import SDK_ERRORS, translate

_FIELDS = {"ChecksumCRC64NVME": CRC64NVME, "ChecksumCRC32C": CRC32C, "ChecksumCRC32": CRC32}
"""An object has one, of the kind its uploader chose; AWS itself adds CRC64NVME where none was."""

_PARTS_PER_PAGE = 1000
_PARTS_MAX = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

_WITHOUT_IT = frozenset({405, 501})
"""How servers say that they do not know GetObjectAttributes."""

_NOT_HAD = (AccessDenied, ObjectNotFound, ObjectChanged, Unsupported)
"""Then the object has no checksums for us; whether it can be read, reading tells."""


def find_checksums(client: S3Client, bucket: str, id: ObjectId) -> Checksums | None:
    """Those of this version: one request, and one more for each 1,000 parts.

    None if there are none, or if they may not be asked for. Raises `StoreUnavailable`.
    """
    named = {"Bucket": bucket, "Key": id.key}
    head = _ask(client, "head_object", **named, ChecksumMode="ENABLED")
    if head is None or head.get("ETag", "").strip('"') != id.etag:
        return None
    size = head.get("ContentLength", 0)
    field = next((field for field in _FIELDS if field in head), None)
    if field is None or size <= 0:
        return None
    whole = _value(field, head[field])
    # Servers that name no type may give the CRC of the parts' CRCs, without a number behind it.
    in_parts = "-" in id.etag and _FIELDS[field] != CRC64NVME
    kind = head.get("ChecksumType") or ("COMPOSITE" if in_parts else "FULL_OBJECT")
    if whole is not None and kind == "FULL_OBJECT":
        return Checksums(_FIELDS[field], array("Q", [size]), array("Q", [whole]))
    return _of_parts(client, named, id, size, field)


def _of_parts(
    client: S3Client, named: dict[str, str], id: ObjectId, size: int, field: str
) -> Checksums | None:
    stops, values = array("Q"), array("Q")
    marker = 0
    while len(values) <= _PARTS_MAX:
        answer = _ask(
            client,
            "get_object_attributes",
            **named,
            ObjectAttributes=["ETag", "ObjectParts"],
            MaxParts=_PARTS_PER_PAGE,
            PartNumberMarker=marker,
        )
        if answer is None or answer.get("ETag", "").strip('"') != id.etag:
            return None
        page = answer.get("ObjectParts", {})
        for part in page.get("Parts", ()):
            value = _value(field, part.get(field, ""))
            if value is None or part.get("Size", 0) <= 0:
                return None
            stops.append((stops[-1] if stops else 0) + part["Size"])
            values.append(value)
        following = int(page.get("NextPartNumberMarker") or 0)
        if not page.get("IsTruncated") or following <= marker:
            break
        marker = following
    # Servers that know the attributes and no parts answer with none, or with some.
    return Checksums(_FIELDS[field], stops, values) if stops and stops[-1] == size else None


def _ask(client: S3Client, operation: str, **arguments: Any) -> dict[str, Any] | None:
    try:
        return client.call(operation, **arguments)
    except SDK_ERRORS as error:
        if _status(error) in _WITHOUT_IT:
            return None
        translated = translate(error, f"what S3 knows of {arguments['Key']!r}")
        if isinstance(translated, _NOT_HAD) or type(translated) is FusefsError:
            return None
        raise translated from error


def _status(error: Exception) -> int:
    answered = getattr(error, "response", {})  # of a ClientError, no other has one
    return int(answered.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _value(field: str, text: str) -> int | None:
    """The CRC in base64, or None for anything else: that of parts has their number behind it."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw) if len(raw) == SIZES[_FIELDS[field]] else None
