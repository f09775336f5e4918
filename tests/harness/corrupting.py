"""A wire that gets bytes wrong: a TCP proxy that flips one bit of what a server sends.

It speaks no protocol, so it stands before any server. The one idea: what is to go wrong is told by
what stands before it: `flip(mark, times)` spoils the last byte of `mark` wherever the mark comes by
next. Lengths, heads and framing stay as they were, and no checksum of TCP's sees it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_LIMIT_S = 60.0
"""No connection of a test lives longer, whatever goes wrong."""

_CHUNK_BYTES = 1 << 18


class CorruptingWire:
    """The running proxy. Thread-safe. `address` is "host:port"."""

    def __init__(self, listener: socket.socket, server: tuple[str, int]) -> None:
        self.port: int = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._listener = listener
        self._server = server
        self._lock = threading.Lock()
        # The mutable state of CorruptingWire, under its lock, is what is to be spoiled, how often
        # still and how often it was, and the sockets that are open.
        self._mark = b""
        self._times = 0
        self._flipped = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def flip(self, mark: bytes, times: int) -> None:
        """Spoil the last byte of `mark`, the next `times` that it comes by."""
        with self._lock:
            self._mark, self._times = mark, times

    @property
    def flipped(self) -> int:
        """How often that has happened."""
        with self._lock:
            return self._flipped

    def serve(self) -> None:
        """Accept until the listener is shut down."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server, _LIMIT_S)
            with self._lock:
                self._open |= {client, server}
            for source, target, spoils in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, spoils))
                self._threads.append(thread)
                thread.start()

    def end(self) -> None:
        """Hang up on everybody, and wait for all threads."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_LIMIT_S)
        for connection in self._open:
            connection.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, spoils: bool) -> None:
        source.settimeout(_LIMIT_S)
        before = b""
        # Either end may hang up at any time: that is what connections do.
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                sent = self._spoil(before, data) if spoils else data
                before = (before + data)[-256:]
                target.sendall(sent)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _spoil(self, before: bytes, data: bytes) -> bytes:
        with self._lock:
            mark = self._mark
            if not self._times or not mark:
                return data
            tail = before[-(len(mark) - 1) :]
            found = (tail + data).find(mark)
            if found < 0:
                return data
            self._times -= 1
            self._flipped += 1
        at = found + len(mark) - 1 - len(tail)
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@contextmanager
def open_corrupting_wire(server: str) -> Iterator[CorruptingWire]:
    """Run a proxy in front of `server`, a URL or "host:port", on a free port of 127.0.0.1."""
    place = urlsplit(server if "//" in server else f"//{server}")
    assert place.hostname is not None and place.port is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = CorruptingWire(listener, (place.hostname, place.port))
        thread = threading.Thread(target=wire.serve)
        thread.start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            wire.end()
