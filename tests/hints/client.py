"""A client of the hints' socket for tests: says what it is told to, valid or not."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loaderhint.protocol import Frames, encode

TIMEOUT_S = 20.0


class Client:
    """One connection; blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.events: deque[dict[str, Any]] = deque()
        self.fds: list[int] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._frames = Frames()
        self._numbers = itertools.count(1)

    def send(self, op: str, **fields: Any) -> int:
        """Send a request; returns its number."""
        number = next(self._numbers)
        self.socket.sendall(encode({"id": number, "op": op, **fields}))
        return number

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request: what `ok` holds. AssertionError if it is an error."""
        answer = self.answer(self.send(op, **fields))
        assert "ok" in answer, answer
        ok: dict[str, Any] = answer["ok"]
        return ok

    def refused(self, op: str, **fields: Any) -> str:
        """The code of the error that answers a request."""
        code: str = self.answer(self.send(op, **fields))["error"]["code"]
        return code

    def answer(self, number: int) -> dict[str, Any]:
        """The answer with this number."""
        while number not in self._answers:
            self._receive()
        return self._answers.pop(number)

    def event(self, *kinds: str) -> dict[str, Any]:
        """The next event of these kinds; others before it are dropped."""
        while True:
            while self.events:
                event = self.events.popleft()
                if event["ev"] in kinds:
                    return event
            self._receive()

    def is_closed(self) -> bool:
        """Whether the daemon closed the connection, once all it sent was read."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            return True
        return True

    def _receive(self) -> None:
        data, ancillary, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(4))
        for _, _, payload in ancillary:
            self.fds.extend(array.array("i", payload[:4]))
        if not data:
            raise ConnectionResetError("the daemon closed the connection")
        for message in self._frames.feed(data):
            if "ev" in message:
                self.events.append(message)
            else:
                self._answers[message["id"]] = message


@contextmanager
def connect(directory: Path, greet: bool = True) -> Iterator[Client]:
    """Connect through any directory of a mount."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(directory / ".fusefs" / "socket"))
        client = Client(connection)
        try:
            if greet:
                client.ask("hello", protocol=[1], client="test")
            yield client
        finally:
            for fd in client.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)


def inode(path: Path) -> int:
    """By which a client names a file."""
    return path.stat().st_ino
