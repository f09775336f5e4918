"""Writing to Google Cloud Storage: parts as objects of their own, composed into one at the end.

The one idea: a part is an ordinary object below `.fusefs/parts/` of the SOURCE, where no mount
shows it, with the MD5 that Google checked. So parts go up in parallel, and what an attempt that was
cut has left is found by listing and compared by content. Google composes up to 32 objects at a
time, atomically, and takes the parts away in the same step. The other way, XML multipart uploads,
has other permissions, and its parts' checksums are documented nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from google.api_core.exceptions import NotFound

from fusefs.config import GcsConfig
from fusefs.errors import InternalError, ObjectChanged, ObjectNotFound, StoreUnavailable
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.store.base import LIST_PAGE_KEYS, Upload
from fusefs.store.gcs_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, GcsClient, meta_of
from fusefs.store.gcs_errors import SDK_ERRORS, translate

PART_BYTES = 32 << 20
"""Long enough that a request's wait costs little, short enough that 8 at a time are 256 MiB."""

COMPOSE_MAX = 32
"""Objects that Google composes in one request."""

_PARTS_MAX = COMPOSE_MAX**3
"""Three rounds of composing. Larger objects, from 1 TiB on, have larger parts."""

_COMPOSING_THREADS = 8
"""A compose takes Google a part of a second, and a shard of 10 GB takes ten."""

_FIELDS = "name,generation,size,timeCreated,md5Hash,metadata"
_LISTED = f"items({_FIELDS}),nextPageToken"

_KEY_LABEL = "fusefs-key"
"""On a part: the object it is for."""
_SOURCES_LABEL = "fusefs-sources"
"""On what was composed: of which parts, so that a request whose answer was lost can be repeated."""

_SENT_BYTES = 1 << 16
"""At a time. A socket's timeout is for one send, whole: 64 KiB get through a slow, shared link."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Piece:
    """An object that will be composed: a part, or parts composed before. `md5` as Google has it."""

    name: str
    generation: str
    size: int
    md5: str | None = None


class GcsWriter:
    """Obeys `fusefs.store.base.Writer` for one bucket; parts lie below `prefix` ("" or "…/")."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        config: GcsConfig,
        connections: int,
        part_bytes: int = PART_BYTES,
    ) -> None:
        timeouts_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        self._client = GcsClient(bucket, config, "read_write", connections, timeouts_s)
        self._parts_prefix = f"{prefix}.fusefs/parts/"
        self._part_bytes = part_bytes

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        what = self._client.object(key)
        return _insert(self._client, key, memoryview(data), {}, what)

    def begin(self, key: str, size: int) -> Upload:
        """See `Writer`."""
        least = -(-size // _PARTS_MAX)
        part_bytes = max(self._part_bytes, least)
        attempt = hashlib.sha256(json.dumps([key, size, part_bytes]).encode()).hexdigest()[:32]
        place = f"{self._parts_prefix}{attempt}/"
        found = {
            meta.id.key: _Piece(meta.id.key, meta.id.etag, meta.size, item.get("md5Hash"))
            for meta, item in _listed(self._client, place)
        }
        return GcsUpload(self._client, key, size, part_bytes, place, found)

    def delete(self, key: str) -> None:
        """See `Writer`."""
        what = self._client.object(key)
        with suppress(ObjectNotFound):
            _delete(self._client, key, {}, what)

    def discard(self, prefix: str) -> int:
        """See `Writer`."""
        left = [
            (meta.id, key)
            for meta, item in _listed(self._client, self._parts_prefix)
            if (key := _label(item, _KEY_LABEL)).startswith(prefix)
        ]
        _in_parallel(lambda part: _remove(self._client, part), [part for part, _ in left])
        return len({key for _, key in left})

    def publish(self, prefix: str) -> None:
        """See `Writer`. Google's objects appear one by one."""

    def close(self) -> None:
        """See `Writer`."""
        self._client.close()


class GcsUpload:
    """Obeys `fusefs.store.base.Upload`. `place` is where its parts are, `found` what was there."""

    def __init__(
        self,
        client: GcsClient,
        key: str,
        size: int,
        part_bytes: int,
        place: str,
        found: Mapping[str, _Piece],
    ) -> None:
        self.part_bytes = part_bytes
        self._client = client
        self._key = key
        self._parts = -(-size // part_bytes)
        self._place = place
        self._found = found
        self._lock = threading.Lock()
        # The mutable state of GcsUpload. `_put` is under the lock, the others are of the one thread
        # that commits. INVARIANT: what `_pieces` names, in this order, are all bytes of the object.
        self._put: dict[int, _Piece] = {}
        self._pieces: list[_Piece] = []
        self._rounds = 0
        self._made: ObjectMeta | None = None

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        name = f"{self._place}{index:05}"
        found = self._found.get(name)
        if found is not None and (found.size, found.md5) == (len(data), _md5(data)):
            piece, sent = found, False
        else:
            labels = {_KEY_LABEL: self._key}
            what = f"part {index} of {self._client.object(self._key)}"
            meta = _insert(self._client, name, data, labels, what)
            piece, sent = _Piece(name, meta.id.etag, meta.size), True
        with self._lock:
            self._put[index] = piece
        return sent

    def commit(self) -> ObjectMeta:
        """See `Upload`. Called again after a failure, it goes on where it was."""
        if self._made is None:
            self._made = self._compose_all()
        # Google has taken the parts away already; other servers, and earlier attempts, leave some.
        left = [meta.id for meta, _ in _listed(self._client, self._place)]
        _in_parallel(lambda part: _remove(self._client, part), left)
        return self._made

    def _compose_all(self) -> ObjectMeta:
        if not self._pieces:
            missing = [index for index in range(self._parts) if index not in self._put]
            if missing:
                raise InternalError(f"part {missing[0]} of {self._parts} was never put")
            self._pieces = [self._put[index] for index in range(self._parts)]
        while len(self._pieces) > COMPOSE_MAX:
            made = _in_parallel(self._compose_group, list(enumerate(_batches(self._pieces))))
            self._rounds += 1
            self._pieces = [_Piece(meta.id.key, meta.id.etag, meta.size) for meta in made]
        return self._compose(self._key, self._pieces, {})

    def _compose_group(self, numbered: tuple[int, list[_Piece]]) -> ObjectMeta:
        number, pieces = numbered
        name = f"{self._place}round{self._rounds}-{number:05}"
        return self._compose(name, pieces, {_KEY_LABEL: self._key})

    def _compose(self, name: str, pieces: list[_Piece], labels: dict[str, str]) -> ObjectMeta:
        what = self._client.object(self._key)
        sources = [{"name": piece.name, "generation": piece.generation} for piece in pieces]
        label = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
        request = {
            "sourceObjects": sources,
            "destination": {
                "contentType": "application/octet-stream",
                "metadata": {**labels, _SOURCES_LABEL: label},
            },
            # In the same step, and for good: neither soft delete nor versioning keeps (and bills)
            # bytes that the new object holds.
            "deleteSourceObjects": True,
        }
        try:
            path = f"/storage/v1{self._client.path(name)}/compose"
            return meta_of(self._client.ask("POST", path, {"fields": _FIELDS}, json=request), what)
        except NotFound as error:
            made = self._composed_before(name, label, what)
            if made is None:
                raise ObjectChanged(f"{what} cannot be made: its parts were removed") from error
            return made
        except SDK_ERRORS as error:
            raise translate(error, what) from error

    def _composed_before(self, name: str, label: str, what: str) -> ObjectMeta | None:
        """What an earlier request, whose answer was lost, made of the same sources."""
        try:
            path = f"/storage/v1{self._client.path(name)}"
            resource = self._client.ask("GET", path, {"fields": _FIELDS})
        except NotFound:
            return None
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        meta = meta_of(resource, what)
        return meta if _label(resource, _SOURCES_LABEL) == label else None


class _Body:
    """The body of an upload, sent without a copy.

    requests asks for its length and iterates over it; twice, if a token had to be renewed.
    """

    def __init__(self, *pieces: memoryview) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return sum(len(piece) for piece in self._pieces)

    def __iter__(self) -> Iterator[memoryview]:
        for piece in self._pieces:
            for start in range(0, len(piece), _SENT_BYTES):
                yield piece[start : start + _SENT_BYTES]


def _insert(
    client: GcsClient, key: str, data: memoryview, labels: dict[str, str], what: str
) -> ObjectMeta:
    """Write an object in one request; Google refuses it unless its MD5 is that of `data`."""
    md5 = _md5(data)
    boundary = secrets.token_hex(16)
    about = json.dumps({"name": key, "md5Hash": md5, "metadata": labels})
    start = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    end = f"\r\n--{boundary}--\r\n"
    try:
        resource = client.ask(
            "POST",
            f"/upload/storage/v1{client.path()}",
            {"uploadType": "multipart", "fields": _FIELDS},
            data=_Body(memoryview(start.encode()), data, memoryview(end.encode())),
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        )
    except SDK_ERRORS as error:
        raise translate(error, what) from error
    meta = meta_of(resource, what)
    # A server that does not check must at least say what it has.
    if (meta.size, resource.get("md5Hash")) != (len(data), md5):
        raise StoreUnavailable(f"{what} arrived damaged")
    return meta


def _listed(client: GcsClient, prefix: str) -> list[tuple[ObjectMeta, Any]]:
    """All objects below `prefix`, at any depth: their metadata, and what more JSON says."""
    what = f"the listing of parts in bucket {client.name!r}"
    query = {"prefix": prefix, "fields": _LISTED, "maxResults": str(LIST_PAGE_KEYS)}
    page = client.list_page(what, None, query)
    items = [*page.items]
    while page.token is not None:
        page = client.list_page(what, page.token, query)
        items += page.items
    return [(meta_of(item, what), item) for item in items]


def _label(resource: Any, name: str) -> str:
    """A label of an object in JSON, "" if it has none."""
    return str((resource.get("metadata") or {}).get(name, ""))


def _remove(client: GcsClient, part: ObjectId) -> None:
    """Remove a part in this generation: in a bucket with versions it would stay, without one."""
    with suppress(ObjectNotFound):
        what = f"a part in bucket {client.name!r}"
        _delete(client, part.key, {"generation": part.etag}, what)


def _delete(client: GcsClient, key: str, query: Mapping[str, str], what: str) -> None:
    try:
        client.send("DELETE", f"/storage/v1{client.path(key)}", query).close()
    except SDK_ERRORS as error:
        raise translate(error, what) from error


def _md5(data: memoryview) -> str:
    """As Google writes it. Not a matter of security: it tells parts apart, and damage."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    for start in range(0, len(pieces), COMPOSE_MAX):
        yield pieces[start : start + COMPOSE_MAX]


def _in_parallel(action: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """What `action` gives for each, in order. Raises the first failure, after all have ended."""
    with ThreadPoolExecutor(_COMPOSING_THREADS) as pool:
        return list(pool.map(action, things))
