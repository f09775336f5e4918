"""The kernel's page cache, as far as fusefs is concerned: pages by inode, and READs for the rest.

Pages get there by a READ's reply or by a push. The one idea: a page is never looked at again once
it is there, so a wrong one stays wrong, and the model sees it.
"""

from __future__ import annotations

import socket
from typing import cast

import trio

from fusefs.engine import jobs
from fusefs.engine.blocks import File
from fusefs.policy.pushed import PAGE_BYTES
from tests.engine.simulated import Engine

PUSH_S = 0.04
"""A pusher on a busy machine: a fetch takes no longer."""


class Kernel:
    """Reads as the kernel does, and is the other end of the pusher.

    The mutable state of Kernel is the pages, by inode and number.
    """

    def __init__(self, engine: Engine, nursery: trio.Nursery) -> None:
        self._engine = engine
        self._nursery = nursery
        self._pages: dict[int, dict[int, bytes]] = {}

    def attach(self) -> None:
        """Let the engine push from now on."""
        self._engine.pagecache._channel = cast(socket.socket, self)
        self._engine.pagecache.allow(None)

    def send(self, data: bytes) -> None:
        """A message for the pusher: the pages come a little later."""
        self._nursery.start_soon(self._push, jobs.decode(data))

    def drop(self) -> None:
        """Under memory pressure: every page goes."""
        self._pages.clear()

    def forget(self, inode: int) -> None:
        """The inode is let go of, and its pages with it."""
        self._pages.pop(inode, None)

    async def read(self, file: File, inode: int, offset: int, size: int) -> bytes:
        """What a reader gets: from pages that are there, and by READs of those that are not.

        Raises what a READ raises.
        """
        stop = min(offset + size, file.meta.size)
        if offset >= stop:
            return b""
        numbers = range(offset // PAGE_BYTES, -(-stop // PAGE_BYTES))
        pages = self._pages.setdefault(inode, {})
        found = {number: pages[number] for number in numbers if number in pages}
        missing = [number for number in numbers if number not in found]
        while missing:
            count = 1
            while count < len(missing) and missing[count] == missing[0] + count:
                count += 1
            run, missing = missing[:count], missing[count:]
            at = run[0] * PAGE_BYTES
            data = await self._engine.read(file, at, count * PAGE_BYTES)
            for number in run:
                page = data[number * PAGE_BYTES - at :][:PAGE_BYTES]
                found[number] = pages[number] = page
        whole = b"".join(found[number] for number in numbers)
        return whole[offset - numbers.start * PAGE_BYTES :][: stop - offset]

    async def _push(self, message: jobs.Message) -> None:
        await trio.sleep(PUSH_S)
        start, at, size = message["start"], message["at"], message["size"]
        view = self._engine.arena.view(0, at, size)
        pages = self._pages.setdefault(message["inode"], {})
        for begin in range(0, size, PAGE_BYTES):
            page = bytes(view[begin : begin + PAGE_BYTES])
            pages[(start + begin) // PAGE_BYTES] = page
        self._engine.pagecache._finish(message["id"], lost=False)
        self._engine.fetcher.wake()
