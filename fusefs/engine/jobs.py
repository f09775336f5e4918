"""The messages between the daemon and its workers: JSON, one per SEQPACKET datagram.

Daemon → worker: `{"id", "op", …}`, op one of READ, LIST, HEAD, CHECK, HEADER, INDEX, SUM. Worker →
daemon: `{"id", "landed": n}` (read: the first n bytes are final; with checks, also `"sums"`, what
they found out since the last message), `{"id", "part": …}` (a piece of a long answer), then exactly
one of `{"id", "ok": …}` and `{"id", "error": …}`. After that last message the worker does not touch
the job's slots any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fusefs.errors import CorruptData
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta

MESSAGE_BYTES_MAX = 128 * 1024
"""Below the default socket buffer of Linux (212,992), so that a message always fits."""

PART_BYTES_MAX = 96 * 1024
"""Payload of one part of a long answer, leaving room for the message around it."""

_INT64_MAX = (1 << 63) - 1

READ, LIST, HEAD, CHECK = "read", "list", "head", "check"
HEADER, INDEX, SUM = "header", "index", "sum"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReadJob:
    """Fetch `extent` of `id` into the arena from byte `arena_offset` on."""

    job: int
    id: ObjectId
    extent: Extent
    arena_offset: int

    def to_message(self) -> Message:
        """As sent to the worker."""
        return {
            "id": self.job,
            "op": READ,
            "key": self.id.key,
            "etag": self.id.etag,
            "start": self.extent.start,
            "stop": self.extent.stop,
            "at": self.arena_offset,
        }


def encode(message: Message) -> bytes:
    """One datagram. Keys that are not UTF-8 travel as escaped surrogates."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def decode(data: bytes) -> Message:
    """The message in one datagram."""
    message: Message = json.loads(data)
    return message


def meta_to_wire(meta: ObjectMeta) -> list[Any]:
    """A meta as `[key, etag, size, mtime_ns]`.

    Raises `CorruptData` if no file can be of that size or time: the kernel takes 64 bits of each.
    """
    if not 0 <= meta.size <= _INT64_MAX or abs(meta.mtime_ns) > _INT64_MAX:
        raise CorruptData(
            f"the store says that {meta.id.key[:200]!r} has an impossible size or time"
        )
    return [meta.id.key, meta.id.etag, meta.size, meta.mtime_ns]


def meta_from_wire(wire: list[Any]) -> ObjectMeta:
    """Decode `meta_to_wire`."""
    return ObjectMeta(ObjectId(wire[0], wire[1]), wire[2], wire[3])


def page_to_parts(page: ListPage) -> list[list[Any]]:
    """A page as parts, each of which fits a datagram: lists of metas and of prefix strings.

    Raises `CorruptData` if it holds what is none, or is longer than any store's names.
    """
    entries: list[Any] = [meta_to_wire(meta) for meta in page.objects]
    entries.extend(page.prefixes)
    return in_parts(entries)


def in_parts(entries: Iterable[Any]) -> list[list[Any]]:
    """Entries as lists that fit a datagram each. Raises `CorruptData` if one alone does not."""
    parts: list[list[Any]] = [[]]
    size = 0
    for entry in entries:
        length = len(json.dumps(entry)) + 1
        if length > PART_BYTES_MAX:
            raise CorruptData(f"the store's answer holds a name of {length} bytes")
        if parts[-1] and size + length > PART_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += length
    return parts


def page_from_parts(parts: list[list[Any]], next_token: str | None) -> ListPage:
    """Decode `page_to_parts`."""
    entries = [entry for part in parts for entry in part]
    return ListPage(
        objects=tuple(meta_from_wire(entry) for entry in entries if not isinstance(entry, str)),
        prefixes=tuple(entry for entry in entries if isinstance(entry, str)),
        next_token=next_token,
    )
