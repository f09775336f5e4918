"""The network between a mount and its store, as bad as wanted: a TCP proxy on 127.0.0.1.

Knows no protocol, so every kind of store can stand behind it. What it does to the bytes on their
way down is one `Weather`, which may change at any time. It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

PIECE_BYTES = 32 << 10
"""What is read at once: at the rates of these tests, some milliseconds."""

ENDLESS_S = 3600.0
"""Longer than any test."""

STEP_S = 10.0
"""The longest the proxy's thread may take to do as it is told, on a busy machine."""

Event = Literal["reset", "stall", "trickle"]


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to connections and to the bytes on their way down.

    `rate` is bytes/s of all connections together. An `event` strikes every `every`-th time that a
    connection has brought `after` bytes (more): it is reset, stands still for `seconds`, or from
    then on trickles at `trickle` bytes/s. `slow` is the rate of the first connection opened in it.
    `silent`: nothing passes, and goes on afterwards. `refused`: nobody listens, and those
    who were connected are reset. `passes`: after so many bytes nothing comes until it changes,
    so that what happens next happens in the middle of a load however busy the machine is.
    """

    rate: float = 8e6
    event: Event | None = None
    every: int = 1
    after: int = 256 << 10
    seconds: float = ENDLESS_S
    trickle: float = 1024.0
    slow: float = 0.0
    silent: bool = False
    refused: bool = False
    passes: int = 0


FAIR = Weather()


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection through the proxy."""

    down: asyncio.StreamWriter
    up: asyncio.StreamWriter
    rate: float = 0.0
    brought: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Link:
    """A running proxy; clients connect to 127.0.0.1:`port`.

    The mutable state of Link belongs to the loop's thread: the weather, who is connected, when the
    cable is free again, and the counts of events.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._weather = FAIR
        self._changed = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._free_s = 0.0
        self._events = 0
        self._struck = 0
        self._slowed = False
        self._passed = 0

    def set(self, weather: Weather) -> int:
        """From now on; how often the weather until now has struck."""
        return self._do(self._set(weather))

    @property
    def weather(self) -> Weather:
        """The present one."""
        return self._weather

    @property
    def has_passed(self) -> bool:
        """Whether all bytes have come that this weather lets through."""
        return self._passed >= self._weather.passes

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until `end`; the body of the thread."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        ready()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    def end(self) -> None:
        """Let `run` return."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, action: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(STEP_S)

    async def _set(self, weather: Weather) -> int:
        struck, self._struck, self._events, self._slowed = self._struck, 0, 0, False
        self._weather = weather
        self._passed = 0
        self._struck += weather.silent or weather.rate != FAIR.rate
        self._changed.set()
        self._changed = asyncio.Event()
        if weather.refused and self._listener is not None:
            self._listener.close()
            self._listener = None
            for connection in tuple(self._open):
                self._struck += 1
                self._reset(connection)
        elif not weather.refused and self._listener is None:
            await self._listen()
        return struck

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._attend, "127.0.0.1", self.port, backlog=1024, limit=PIECE_BYTES
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        tasks = [task for connection in self._open for task in connection.tasks]
        for connection in tuple(self._open):
            self._reset(connection)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attend(self, reader: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        try:
            answers, up = await asyncio.open_connection(
                "127.0.0.1", self._server_port, limit=PIECE_BYTES
            )
        except OSError:
            down.transport.abort()
            return
        connection = _Connection(down, up)
        if self._weather.slow and not self._slowed:
            self._slowed = True
            self._struck += 1
            connection.rate = self._weather.slow
        self._open.add(connection)
        connection.tasks += [
            asyncio.create_task(self._upwards(reader, connection)),
            asyncio.create_task(self._downwards(answers, connection)),
        ]

    def _reset(self, connection: _Connection) -> None:
        self._open.discard(connection)
        for task in connection.tasks:
            task.cancel()
        for writer in (connection.down, connection.up):
            wire = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other end was faster
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _upwards(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self._wait_heard()
                connection.up.write(data)
                await connection.up.drain()
        self._reset(connection)

    async def _downwards(self, answers: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(PIECE_BYTES):
                self._passed += len(data)
                await self._wait_heard()
                await self._strike(connection, len(data))
                await self._send(connection, data)
            connection.down.write_eof()
            await connection.down.drain()

    async def _wait_heard(self) -> None:
        while self._weather.silent or (self._weather.passes and self.has_passed):
            await self._changed.wait()

    async def _strike(self, connection: _Connection, size: int) -> None:
        weather = self._weather
        before = connection.brought // weather.after
        connection.brought += size
        if weather.event is None or connection.brought // weather.after == before:
            return
        self._events += 1
        if self._events % weather.every:
            return
        self._struck += 1
        if weather.event == "reset":
            self._reset(connection)
            raise ConnectionResetError
        if weather.event == "stall":
            await asyncio.sleep(weather.seconds)
        connection.rate = weather.trickle if weather.event == "trickle" else connection.rate

    async def _send(self, connection: _Connection, data: bytes) -> None:
        if connection.rate:
            step = max(1, int(connection.rate / 4))
            for at in range(0, len(data), step):
                connection.down.write(data[at : at + step])
                await connection.down.drain()
                await asyncio.sleep(step / connection.rate)
            return
        now = self._loop.time()
        self._free_s = max(self._free_s, now) + len(data) / self._weather.rate
        await asyncio.sleep(self._free_s - now)
        connection.down.write(data)
        await connection.down.drain()


@contextmanager
def open_link(server_port: int) -> Iterator[Link]:
    """Run a proxy in front of 127.0.0.1:`server_port`."""
    link = Link(server_port)
    ready = threading.Event()
    thread = threading.Thread(target=link.run, args=(ready.set,), name="link", daemon=True)
    thread.start()
    try:
        assert ready.wait(STEP_S), "the proxy does not start"
        yield link
    finally:
        link.end()
        thread.join(STEP_S)
