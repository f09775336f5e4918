"""What push notes beside a model: the manifest of what is there, the journal of what is under way.

Both are JSON under `<prefix>.fusefs/`. The manifest is written last and says: all of this is there.
The journal is written first and says which files an attempt writes, so that the next attempt knows
its own from a stranger's. Both come from a bucket that others may write to: names are checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fusefs.errors import CorruptData
from fusefs.tree.names import RESERVED, name_of

MANIFEST = f"{RESERVED}/manifest.json"
JOURNAL = f"{RESERVED}/push.json"
"""Below the prefix of the model."""

VERSION = 1

NOTE_BYTES_MAX = 64 << 20
"""Half a million files at 130 bytes each; anything larger was not written by push."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class FileRow:
    """One file of a model: its name below the prefix, its size in bytes, its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Journal:
    """An attempt: the files of the whole model, what stood there before, what goes at the end.

    `before` maps names that the attempt writes to the etags they had; whatever has another etag and
    the right size since then was written by the attempt.
    """

    files: tuple[FileRow, ...]
    before: dict[str, str]
    remove: tuple[str, ...]


def encode_manifest(files: Iterable[FileRow]) -> bytes:
    """The manifest of these files; the same files give the same bytes."""
    return _encode({"v": VERSION, "files": [asdict(row) for row in sorted(files)]})


def decode_manifest(data: bytes, where: str) -> tuple[FileRow, ...]:
    """Undo `encode_manifest`. Raises `CorruptData`, naming `where`."""
    return _rows(_decode(data, where), where)


def encode_journal(journal: Journal) -> bytes:
    """The journal as JSON."""
    return _encode({"v": VERSION, **asdict(journal)})


def decode_journal(data: bytes, where: str) -> Journal:
    """Undo `encode_journal`. Raises `CorruptData`, naming `where`."""
    decoded = _decode(data, where)
    before, remove = decoded.get("before"), decoded.get("remove")
    if (
        not isinstance(before, dict)
        or not isinstance(remove, list)
        or not all(isinstance(etag, str) for etag in before.values())
        or not all(isinstance(name, str) and is_name(name) for name in remove)
    ):
        raise _corrupt(where)
    return Journal(_rows(decoded, where), before, tuple(remove))


def is_name(name: str) -> bool:
    """Whether a mount could show `name`, a path with "/": nothing empty, "..", or reserved."""
    return all(name_of(segment) is not None for segment in name.split("/"))


def _encode(value: dict[str, Any]) -> bytes:
    # ASCII: names that are not UTF-8 are carried as escapes and come back as they were.
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _corrupt(where) from error
    if not isinstance(decoded, dict) or decoded.get("v") != VERSION:
        raise _corrupt(where)
    return decoded


def _rows(decoded: dict[str, Any], where: str) -> tuple[FileRow, ...]:
    try:
        rows = tuple(FileRow(r["name"], r["size"], r["sha256"]) for r in decoded["files"])
        sound = all(
            is_name(row.name)
            and type(row.size) is int
            and row.size >= 0
            and _SHA256.fullmatch(row.sha256)
            for row in rows
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _corrupt(where) from error
    if not sound or len({row.name for row in rows}) != len(rows):
        raise _corrupt(where)
    return rows


def _corrupt(where: str) -> CorruptData:
    return CorruptData(
        f"{where} was not written by this version of fusefs: look at it with fusefs cat, and take"
        " it away if it is of no use"
    )
