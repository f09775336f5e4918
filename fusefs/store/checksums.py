"""What the bytes of an object should add up to, and who says so: push's note, or the store.

The note is JSON beside a model, `.fusefs/checksums.json`, with a CRC32 for each MiB of each file
that `fusefs push` wrote: every Python can compute that one. It is good for every kind of store, and
its pieces are checked before anybody sees them; so it comes before what the store itself knows,
which mostly is one CRC for a whole object. The one idea: a row names the etag it is of, so a note
that is old says nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cachetools import LRUCache

from fusefs.errors import AccessDenied, CorruptData, ObjectChanged, ObjectNotFound
from fusefs.objects import Checksums, Extent, ObjectId
from fusefs.policy.crc import CRC32
from fusefs.store.base import Store

log = logging.getLogger("fusefs.checksums")

NOTE = ".fusefs/checksums.json"
"""Below the prefix of the model, in the folder that no mount shows."""

VERSION = 1

PIECE_BYTES = 1 << 20
"""As the arena's blocks, so that each is checked by itself: 5.4 bytes of note for each MiB."""

NOTE_BYTES_MAX = 32 << 20
"""A model of 6 TB. Each worker holds the notes of the models it reads."""

_FILES_MAX = 256
"""Files whose checksums are held: 40 kB for a shard of 5 GB."""

_NOTES_MAX = 16
"""Folders whose notes are held."""

_BELIEVED_S = 60.0
"""How long "there is none" is believed, as names are (`tree.ttl_s`)."""

_LOOK_AGAIN_S = 5.0
"""A version that a note does not know may have been pushed since it was read."""


@runtime_checkable
class KnowsChecksums(Protocol):
    """A store that keeps checksums of its objects."""

    def checksums(self, id: ObjectId) -> Checksums | None:
        """Those of this version, if it has any that are CRCs; one request or two.

        Raises like `Store`; who may read the object and not its checksums gets None.
        """


@dataclass(frozen=True, slots=True)
class NoteRow:
    """One file: its size in bytes, the etag of its version, the CRC32s of its pieces."""

    size: int
    etag: str
    crcs: bytes


def encode_note(rows: Mapping[str, NoteRow]) -> bytes:
    """The note of these files, by name below the prefix."""
    files = {
        name: {
            "size": row.size,
            "etag": row.etag,
            "crcs": base64.b64encode(row.crcs).decode("ascii"),
        }
        for name, row in rows.items()
    }
    note = {"v": VERSION, "crc": CRC32, "piece_bytes": PIECE_BYTES, "files": files}
    return (json.dumps(note, indent=1, sort_keys=True) + "\n").encode("ascii")


def decode_note(data: bytes, where: str) -> dict[str, dict[str, object]]:
    """The rows of a note, each still to be read by `checksums_of`. Raises `CorruptData`."""
    try:
        note = json.loads(data)
        described = (note["v"], note["crc"], note["piece_bytes"])
        files = note["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptData(
            f"{where} was not written by fusefs push: push the model again"
        ) from error
    if described != (VERSION, CRC32, PIECE_BYTES) or not isinstance(files, dict):
        raise CorruptData(f"{where} was written by another version of fusefs: push the model again")
    return {name: row for name, row in files.items() if isinstance(row, dict)}


def checksums_of(row: Mapping[str, object], etag: str) -> Checksums | None:
    """What a row says of the version `etag`: None if it is of another one, or no row of ours."""
    size, crcs = row.get("size"), row.get("crcs")
    if row.get("etag") != etag or type(size) is not int or not isinstance(crcs, str):
        return None
    try:
        raw = base64.b64decode(crcs, validate=True)
    except (binascii.Error, ValueError):
        return None
    if size <= 0 or len(raw) != 4 * -(-size // PIECE_BYTES):
        return None
    stops = array("Q", range(PIECE_BYTES, size, PIECE_BYTES))
    stops.append(size)
    values = array("Q", (int.from_bytes(raw[at : at + 4]) for at in range(0, len(raw), 4)))
    return Checksums(CRC32, stops, values)


class Finder:
    """Finds the checksums of objects. Blocking, thread-safe, one per worker process.

    `prefix` bounds where notes are looked for: in a key's folder and those above it, not above the
    source. The mutable state of Finder, under its lock, is what was found, or is being looked for
    by some thread; and the notes, each with the time it was read at.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._lock = threading.Lock()
        self._found: LRUCache[ObjectId, tuple[float, Future[Checksums | None]]]
        self._found = LRUCache(_FILES_MAX)
        self._notes: LRUCache[str, tuple[float, dict[str, dict[str, object]]]]
        self._notes = LRUCache(_NOTES_MAX)

    def find(self, id: ObjectId) -> Checksums | None:
        """The checksums of this version, or None if nobody keeps any.

        Raises `StoreUnavailable` if that cannot be told now.
        """
        now_s = time.monotonic()
        with self._lock:
            asked_s, future = self._found.get(id, (now_s, None))
            mine = future is None or _is_old(future, now_s - asked_s)
            if future is None or mine:
                future = Future()
                self._found[id] = (now_s, future)
        if mine:
            try:
                future.set_result(self._look(id))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()

    def _look(self, id: ObjectId) -> Checksums | None:
        for folder in self._folders(id.key):
            name = id.key.removeprefix(folder)
            row = self._rows(folder).get(name)
            found = checksums_of(row, id.etag) if row is not None else None
            if found is not None:
                return found
        return self._store.checksums(id) if isinstance(self._store, KnowsChecksums) else None

    def _folders(self, key: str) -> Iterator[str]:
        """The folder of `key` and those above it, innermost first, down to the source's."""
        while len(key) > len(self._prefix) and key.startswith(self._prefix):
            key = key[: key.rstrip("/").rfind("/") + 1]
            if len(key) >= len(self._prefix):
                yield key
            if not key:
                return

    def _rows(self, folder: str) -> dict[str, dict[str, object]]:
        now_s = time.monotonic()
        with self._lock:
            read_s, rows = self._notes.get(folder, (float("-inf"), {}))
        if now_s - read_s > (_LOOK_AGAIN_S if rows else _BELIEVED_S):
            rows = self._read_note(folder + NOTE)
            with self._lock:
                self._notes[folder] = (now_s, rows)
        return rows

    def _read_note(self, key: str) -> dict[str, dict[str, object]]:
        try:
            meta = self._store.head(key)
            if not 0 < meta.size <= NOTE_BYTES_MAX:
                log.info("no checksums from %r: it has %d bytes", key, meta.size)
                return {}
            data = bytearray(meta.size)
            self._store.read_into(meta.id, Extent(0, meta.size), memoryview(data))
            return decode_note(bytes(data), repr(key))
        except (ObjectNotFound, ObjectChanged, AccessDenied):
            return {}
        except CorruptData as error:
            log.info("no checksums from there: %s", error)
            return {}


def _is_old(answer: Future[Checksums | None], age_s: float) -> bool:
    """Whether to ask again: it failed, or there was none a while ago."""
    if not answer.done():
        return False
    return answer.exception() is not None or (answer.result() is None and age_s > _BELIEVED_S)
