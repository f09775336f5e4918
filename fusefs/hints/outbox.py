"""What goes out to one peer: answers in their order, events when there is room for them.

The one idea: events are not queued. A source of events keeps what there is to say as state, which
is bounded by the plan it is about, and is asked for messages when the last ones have gone out. So
a peer that reads slowly hears the same in fewer words; one that does not read at all is let go.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import trio

from loaderhint import protocol

SEND_TIMEOUT_S = 30.0
"""A peer that takes nothing for so long is dead or hostile; what it held is free then."""

ANSWERS_MAX = 64
"""Answers that wait to be sent; no request is read beyond that."""

BATCH_BYTES = 256 << 10
"""Sent in one call, once there is more: a socket buffer's worth."""


class SlowPeer(Exception):
    """The peer does not read what it is sent."""


class Source(Protocol):
    """Who has events for the peer."""

    def events(self) -> Iterator[Mapping[str, Any]]:
        """What there is to say now; each thing once."""


class Outbox:
    """The sending half of a connection.

    The mutable state of Outbox is the answers that wait, and the sources that have something.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._answers: deque[tuple[bytes, int | None]] = deque()
        self._sources: dict[int, Source] = {}
        self._filled = trio.Event()
        self._emptied = trio.Event()

    def answer(self, message: Mapping[str, Any], fd: int | None = None) -> None:
        """Send an answer, with a descriptor if it has one, which is closed then."""
        self._answers.append((protocol.encode(message), fd))
        self._filled.set()

    def has_events(self, source: Source) -> None:
        """Ask `source` when there is room."""
        self._sources[id(source)] = source
        self._filled.set()

    def forget(self, source: Source) -> None:
        """Do not ask `source` any more."""
        self._sources.pop(id(source), None)

    def close(self) -> None:
        """Nothing more is sent."""
        while self._answers:
            _, fd = self._answers.popleft()
            if fd is not None:
                os.close(fd)

    async def wait_room(self) -> None:
        """Return once another answer may wait to be sent."""
        while len(self._answers) >= ANSWERS_MAX:
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def run(self) -> None:
        """Send, for ever. Raises SlowPeer, or OSError when the peer is gone."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._answers:
                data, fd = self._answers.popleft()
                try:
                    await self._send(data, fd)
                finally:
                    if fd is not None:
                        os.close(fd)
                self._emptied.set()
            batch = bytearray()
            while self._sources and not self._answers:
                _, source = self._sources.popitem()
                for event in source.events():
                    batch += protocol.encode(event)
                    if len(batch) > BATCH_BYTES:
                        await self._send(bytes(batch), None)
                        batch.clear()
            if batch:
                await self._send(bytes(batch), None)
            if self._answers or self._sources:
                self._filled.set()

    async def _send(self, data: bytes, fd: int | None) -> None:
        with trio.move_on_after(SEND_TIMEOUT_S) as scope:
            view = memoryview(data)
            if fd is not None:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
                view = view[await self._connection.sendmsg([view], [rights]) :]
            while view:
                sent = await self._connection.send(view)
                if not sent:
                    raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
                view = view[sent:]
        if scope.cancelled_caught:
            raise SlowPeer(f"nothing was read for {SEND_TIMEOUT_S:g} s")
