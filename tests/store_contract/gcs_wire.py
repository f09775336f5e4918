"""Answers as Google gives them, for `wire.py`'s server to say byte for byte."""

from __future__ import annotations

import json

from fusefs.objects import Extent, ObjectId
from fusefs.store.gcs import GcsStore
from tests.store_contract.wire import DATA, EXTENT, Answer, Ending, answer

GENERATION = "1795408450410248"
ID = ObjectId("dir/model é%2F.safetensors", GENERATION)


def google_error(status: str, reason: str, ending: Ending = "keep", **headers: str) -> Answer:
    """An error in JSON; its texts hold a secret that nobody may repeat."""
    errors = [{"domain": "global", "reason": reason, "message": "token hunter2 is wrong"}]
    error = {"code": int(status[:3]), "message": "token hunter2 is wrong", "errors": errors}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return json_answer({"error": error}, status, ending, **named)


def json_answer(
    value: object, status: str = "200 OK", ending: Ending = "keep", **headers: str | None
) -> Answer:
    """An answer of the JSON API."""
    body = json.dumps(value).encode()
    given: dict[str, str | None] = {
        "Content-Type": "application/json; charset=UTF-8",
        "Content-Length": str(len(body)),
        **headers,
    }
    return answer(status, given, body, ending)


def google_good(body: bytes = DATA, ending: Ending = "keep", **changes: str | None) -> Answer:
    """The right answer to a read of EXTENT, but for `changes` of its headers and status."""
    status = changes.pop("status", None) or "206 Partial Content"
    headers: dict[str, str | None] = {
        "Content-Range": f"bytes {EXTENT.start}-{EXTENT.stop - 1}/99000000",
        "Content-Length": str(EXTENT.size),
        "X-Goog-Hash": "crc32c=AAAAAA==",
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Generation": GENERATION,
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return answer(status, headers, body, ending)


def item(key: str, /, **changes: str | None) -> dict[str, str]:
    """An object as a listing or `head` tells of it, but for `changes`."""
    fields: dict[str, str | None] = {
        "name": key,
        "generation": GENERATION,
        "size": "5",
        "timeCreated": "2026-11-23T04:34:10.410Z",
    }
    return {field: value for field, value in (fields | changes).items() if value is not None}


def read(store: GcsStore, buffer: bytearray, extent: Extent = EXTENT) -> list[int]:
    """Read, and return what landed."""
    reports: list[int] = []
    store.read_into(ID, extent, memoryview(buffer), reports.append)
    return reports
