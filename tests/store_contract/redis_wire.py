"""A Redis that says exactly what a test tells it to, byte for byte, faults included.

Not a model of Redis: it stores nothing. The one idea: greetings are answered by themselves, and
every other command on any connection takes the next answer that the test lined up.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

LIMIT_S = 30.0
"""No connection of a test lives longer, whatever goes wrong."""

_HELLO = b"*4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$5\r\nproto\r\n:2\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send for one command, and what then becomes of the connection."""

    data: bytes
    ending: Literal["keep", "close", "reset", "stall"] = "keep"


def bulk(data: bytes, length: int | None = None) -> bytes:
    """A bulk string, with a lie about its length if one is given."""
    return b"$%d\r\n%s\r\n" % (len(data) if length is None else length, data)


class RedisWire:
    """The running server; `commands` are those that took an answer."""

    def __init__(self, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self.answers: deque[Answer] = deque()
        self.commands: list[list[bytes]] = []
        self._listener = listener
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()

    def serve(self) -> None:
        """Accept until closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            thread = threading.Thread(target=self._attend, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Hang up on everybody who is still there, and wait for all threads."""
        self._ended.set()
        for connection in tuple(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _attend(self, connection: socket.socket) -> None:
        connection.settimeout(LIMIT_S)
        # A client that hangs up is part of the tests.
        with suppress(OSError), connection, connection.makefile("rb") as reader:
            while True:
                head = reader.readline()
                if not head:
                    return
                command = []
                for _ in range(int(head[1:])):
                    size = int(reader.readline()[1:])
                    command.append(reader.read(size + 2)[:-2])
                if not self._answer(connection, command):
                    return

    def _answer(self, connection: socket.socket, command: list[bytes]) -> bool:
        name = command[0].upper()
        if name in (b"CLIENT", b"AUTH", b"SELECT"):
            connection.sendall(b"+OK\r\n")
            return True
        if name == b"HELLO":
            connection.sendall(_HELLO)
            return True
        self.commands.append(command)
        now = self.answers.popleft()
        connection.sendall(now.data)
        if now.ending == "stall":
            self._ended.wait(LIMIT_S)
        if now.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return now.ending == "keep"


@contextmanager
def open_redis_wire() -> Iterator[RedisWire]:
    """Run a server on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = RedisWire(listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            # A thread in accept() only wakes from shutdown, not from close.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.end()
