"""The body of an HTTP answer, from the socket straight into the caller's memory.

Shared by every adapter whose SDK fetches with urllib3. The one idea: below the SDK's body lies
http.client's response, whose own `readinto` receives into the given memory; what lies between makes
a bytes object of every piece, and copies it, holding the GIL.
"""

from __future__ import annotations

import functools
import http.client
import re
from collections.abc import Callable
from typing import Any, Protocol

from fusefs.errors import CorruptData, StoreUnavailable
from fusefs.objects import Extent
from fusefs.store.crawl import Crawl

_PIECE_BYTES = 1 << 20
"""One `landed` for each: the arena's block."""

_COPIED_BYTES = 128 << 10
"""What the copying way waits for at a time: all of a piece would hide how slowly it comes."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class Body(Protocol):
    """The way that always works."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, b"" at the end."""


def check_content_range(value: str | None, extent: Extent, what: str) -> None:
    """Raise `CorruptData` unless the header says exactly this extent."""
    found = _CONTENT_RANGE.fullmatch(value or "")
    if not found or (int(found[1]), int(found[2]) + 1) != (extent.start, extent.stop):
        raise CorruptData(f"{what} came with a wrong Content-Range")


def receive(
    body: Body,
    raw: Any,
    buffer: memoryview,
    landed: Callable[[int], None] | None,
    what: str,
) -> None:
    """Fill `buffer` from a body whose head was checked, and give its connection back.

    `raw` is the urllib3 response below `body`, or None. Raises `StoreUnavailable` on a short body,
    `StoreTimeout` on one that crawls, and whatever the SDK raises; then the caller closes the body,
    since a connection with unread bytes must not go back to the pool.
    """
    direct = _direct_readinto(raw, len(buffer))
    readinto = direct or _copying_readinto(body)
    crawl = Crawl()
    filled = 0
    while filled < len(buffer):
        stop = min(filled + _PIECE_BYTES, len(buffer))
        while filled < stop:
            count = readinto(buffer[filled:stop])
            if count == 0:
                raise StoreUnavailable(f"{what} came short: {filled} of {len(buffer)} bytes")
            filled += count
            crawl.received(count, what)
        if landed is not None:
            landed(filled)
    if direct is not None:
        # With the last byte http.client let go of the socket, so the connection can go back to the
        # pool. urllib3 does that after a read of its own; our way has gone past it.
        raw.release_conn()


def _direct_readinto(raw: Any, size: int) -> Callable[[memoryview], int] | None:
    """The `readinto` of http.client below urllib3, or None if things are not as we know them.

    `StreamingBody.readinto` of botocore, for one, is urllib3's, which reads into a new bytes object
    and then copies: 0.39-0.41 s of CPU per GB against 0.30-0.34, signing and all (8 MiB ranges over
    loopback, Python 3.11, 2 cores). To reach it takes a private attribute; should that go, or the
    body come in chunks or compressed, the copying way serves.
    """
    response = getattr(raw, "_fp", None)
    if not isinstance(response, http.client.HTTPResponse):
        return None
    if response.chunked or response.length != size or response.getheader("Content-Encoding"):
        return None
    return functools.partial(_receive_some, response)


def _receive_some(response: http.client.HTTPResponse, piece: memoryview) -> int:
    """`response.readinto`, but for one receive of the socket: that waits until all is there.

    The last byte is left to http.client, which then lets go of the socket.
    """
    if len(piece) == response.length:
        if len(piece) == 1:
            return response.readinto(piece)
        piece = piece[:-1]
    assert response.length is not None
    count: int = response.fp.readinto1(piece)
    response.length -= count
    return count


def _copying_readinto(body: Body) -> Callable[[memoryview], int]:
    def readinto(piece: memoryview) -> int:
        data = body.read(min(len(piece), _COPIED_BYTES))
        piece[: len(data)] = data
        return len(data)

    return readinto
