"""Notices a body that crawls: some bytes now and then, so that no timeout on silence ever ends it.

Shared by the adapters, which count what they receive here. The one idea: a connection so slow that
one block takes longer than a read may wait serves nobody, and another one may do better.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fusefs.errors import StoreTimeout

CRAWL_WINDOW_S = 20.0
"""As long as an adapter waits for the next bytes at all."""

CRAWL_BYTES_MIN = 128 << 10
"""In that time: 6.4 KiB/s, at which a block of 1 MiB takes 160 s; reads wait for 120 s. A link of
2 Mbit/s still gives 32 connections that much each."""


class Crawl:
    """One body.

    The mutable state of Crawl is when the present window began, and the bytes in it.
    """

    __slots__ = ("_bytes", "_clock", "_since_s")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = clock()
        self._bytes = 0

    def received(self, count: int, what: str) -> None:
        """So many bytes arrived. Raises `StoreTimeout` if a whole window brought too few."""
        self._bytes += count
        now = self._clock()
        if now - self._since_s < CRAWL_WINDOW_S:
            return
        if self._bytes < CRAWL_BYTES_MIN:
            raise StoreTimeout(
                f"{what} came too slowly: {self._bytes} bytes in {now - self._since_s:.0f} s"
            )
        self._since_s, self._bytes = now, 0
