"""An S3 server that says exactly what a test tells it to, byte for byte, faults included.

Not a model of S3: it neither checks signatures nor stores anything. The one idea: a test lines up
answers, and each request on any connection takes the next one.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from fusefs.objects import Extent, ObjectId

LIMIT_S = 30.0
"""No connection of a test lives longer, whatever goes wrong."""

MIB = 1 << 20
SIZE = 3 * MIB + 100
START = 1000
EXTENT = Extent(START, START + SIZE)
DATA = bytes(range(251)) * (SIZE // 251) + bytes(SIZE % 251)
ID = ObjectId("dir/model.safetensors", "abc")

Ending = Literal["keep", "close", "reset", "stall"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send for one request, and what then becomes of the connection."""

    data: bytes
    ending: Ending = "keep"


def answer(
    status: str,
    headers: dict[str, str | None],
    body: bytes = b"",
    ending: Ending = "keep",
) -> Answer:
    """An answer of HTTP/1.1; a header that is None is left out. Content-Length is not implied."""
    lines = [f"HTTP/1.1 {status}", "x-amz-request-id: 0123456789ABCDEF"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return Answer("\r\n".join([*lines, "", ""]).encode() + body, ending)


def error(status: str, code: str, ending: Ending = "keep", **headers: str) -> Answer:
    """An error as S3 spells it; the text holds a secret that nobody may repeat."""
    body = (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>token hunter2 is wrong</Message>"
        "<AWSAccessKeyId>hunter2</AWSAccessKeyId></Error>"
    ).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, {"Content-Length": str(len(body)), **named}, body, ending)


def good(body: bytes = DATA, ending: Ending = "keep", **changes: str | None) -> Answer:
    """The right answer to a read of EXTENT, but for `changes` of its headers and status."""
    status = changes.pop("status", None) or "206 Partial Content"
    headers: dict[str, str | None] = {
        "ETag": '"abc"',
        "Content-Range": f"bytes {EXTENT.start}-{EXTENT.stop - 1}/99000000",
        "Content-Length": str(EXTENT.size),
        "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return answer(status, headers, body, ending)


def empty_listing() -> Answer:
    """The right answer to a listing of a bucket without objects."""
    body = b"<ListBucketResult></ListBucketResult>"
    return answer("200 OK", {"Content-Length": str(len(body))}, body)


class WireServer:
    """The running server. `requests` are the heads it has read, in order."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.port: int = listener.getsockname()[1]
        self.answers: deque[Answer] = deque()
        self.requests: list[str] = []
        self.connections = 0
        self._listener = listener
        self._tls = tls
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
            self.connections += 1
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
        try:
            self._serve_connection(connection)
        finally:
            self._open.discard(connection)

    def _serve_connection(self, connection: socket.socket) -> None:
        connection.settimeout(LIMIT_S)
        # A client that hangs up, or does not like our certificate, is part of the tests.
        with suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                self._talk(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                self._talk(secured)

    def _talk(self, connection: socket.socket) -> None:
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                data = connection.recv(65536)
                if not data:
                    return
                waiting += data
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            self.requests.append(head.decode())
            now = self.answers.popleft()
            connection.sendall(now.data)
            if now.ending == "stall":
                self._ended.wait(LIMIT_S)
            if now.ending == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if now.ending != "keep":
                return


@contextmanager
def open_wire(tls: ssl.SSLContext | None = None) -> Iterator[WireServer]:
    """Run a server on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = WireServer(listener, tls)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            # A thread in accept() only wakes from shutdown, not from close.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.end()
