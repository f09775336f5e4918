"""What goes over the socket inside a mount: frames, operations and their limits.

Shared by the daemon and by clients; pure functions on bytes. The one idea: a hint is a wish about
inodes and byte extents. Names, tensors and slices are the client's business (`loaderhint.header`
turns them into extents), so that the daemon trusts nothing but numbers, and checks those.

A frame is its length (four bytes, little-endian) and that many bytes of JSON in UTF-8: one object.
A request has `id` and `op`; its answer has the same `id` and either `ok` or `error`. What the
server says unasked has `ev`. Unknown fields are ignored, unknown operations are EOPNOTSUPP. The
whole protocol is in docs/hints.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

VERSION = 1

SOCKET_FOLDER = ".fusefs"
SOCKET_NAME = "socket"
"""`<any directory of the mount>/.fusefs/socket`; neither is listed."""

LENGTH_BYTES = 4
FRAME_BYTES_MAX = 1 << 20
"""Some 40,000 extents, read in 10 ms of the daemon's one thread; a longer plan comes in pieces
(`append`). What is longer closes the connection."""

EXTENTS_MAX = 100_000
"""In all plans of one connection, once those that touch are one: a model has fewer tensors."""

FILES_MAX = 10_000
"""In one plan: DeepSeek-V3 has 163 shards."""

PLANS_MAX = 64
"""Of one connection."""

PLAN_NAME_MAX = 128
GROUP_SIZE_MAX = 4096

HELLO, PLAN, WAIT, SUBSCRIBE = "hello", "plan", "wait", "subscribe"
MAP, RELEASE, CANCEL, PROGRESS, STATS = "map", "release", "cancel", "progress", "stats"
"""Operations."""

READY, SLOT, DONE, FAILED = "ready", "slot", "done", "failed"
"""Events; progress is one, too."""


class ProtocolError(ValueError):
    """The bytes are not of this protocol; who sent them is not listened to any longer."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame. Raises ProtocolError if it is too long."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a message of {len(body)} bytes; at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class Frames:
    """Cuts a stream of bytes into messages.

    The mutable state of Frames is what came and is no whole frame yet.
    INVARIANT: never more than one frame of the longest length is kept.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that are whole now. Raises ProtocolError at the first that is none."""
        self._rest += data
        while len(self._rest) >= LENGTH_BYTES:
            size = int.from_bytes(self._rest[:LENGTH_BYTES], "little")
            if size > self._frame_bytes_max:
                raise ProtocolError(f"a frame of {size} bytes; at most {self._frame_bytes_max}")
            stop = LENGTH_BYTES + size
            if len(self._rest) < stop:
                return
            body = bytes(self._rest[LENGTH_BYTES:stop])
            del self._rest[:stop]
            yield decode(body)


def decode(body: bytes) -> dict[str, Any]:
    """The message in a frame. Raises ProtocolError."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is no JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is an object")
    return message


def extents_of(value: object) -> list[tuple[int, int]]:
    """The extents `[[start, stop], …]` of a message, as they stand. Raises ProtocolError."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ProtocolError("extents are a list of [start, stop]")
    extents = []
    for pair in value:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ProtocolError("an extent is [start, stop]")
        start, stop = pair
        if type(start) is not int or type(stop) is not int or not 0 <= start <= stop:
            raise ProtocolError("an extent is two whole numbers, 0 <= start <= stop")
        extents.append((start, stop))
    return extents
