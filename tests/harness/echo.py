"""A server that says back what it was told: credentials, tokens and signatures, in its errors.

Between a store and its server it passes requests on, until a test sets `status`: then every answer
has this status and repeats the request, in its reason, its headers and its body, as a clumsy
gateway's debug page does. As an HTTP proxy (`http_proxy`) it does the same. For Redis there is one
that repeats every command as an error.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_LIMIT_S = 30.0
_OF_THE_CONNECTION = {"connection", "content-length", "transfer-encoding", "date", "server"}


class Echo:
    """The running server. Tests set `status`, or None to pass requests on to `origin`."""

    def __init__(self, origin: str | None) -> None:
        self.origin = origin
        self.endpoint = ""
        self.status: int | None = None if origin else 500
        self.asked = 0


@contextmanager
def open_echo(origin: str | None = None) -> Iterator[Echo]:
    """Run it in threads of this process, on a free port; `origin` is "http://host:port"."""
    echo = Echo(origin)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            echo.asked += 1
            with suppress(BrokenPipeError, ConnectionResetError):
                if echo.status is None:
                    self._pass_on(body)
                else:
                    self._repeat(echo.status)

        do_HEAD = do_POST = do_PUT = do_CONNECT = do_GET  # noqa: N815

        def _pass_on(self, body: bytes) -> None:
            assert echo.origin is not None
            there = http.client.HTTPConnection(urlsplit(echo.origin).netloc, timeout=_LIMIT_S)
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            data = answer.read()
            length = str(len(data))
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_THE_CONNECTION:
                    self.send_header(name, value)
                elif name.lower() == "content-length":
                    length = value  # of a HEAD, too
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)
            there.close()

        def _repeat(self, status: int) -> None:
            said = f"{self.requestline} {' '.join(f'{k}: {v}' for k, v in self.headers.items())}"
            body = f"<Error><Code>{said}</Code><Message>{said}</Message></Error>".encode()
            self.send_response(status, said)
            for name in ("x-ms-error-code", "x-amz-request-id", "WWW-Authenticate"):
                self.send_header(name, said)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        echo.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield echo
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def open_redis_echo() -> Iterator[str]:
    """A server to which every command is an error that repeats it; yields "host:port"."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the listener was closed
                while True:
                    peer, _ = listener.accept()
                    threading.Thread(target=repeat, args=(peer,), daemon=True).start()

        def repeat(peer: socket.socket) -> None:
            with peer, suppress(OSError):
                while data := peer.recv(65536):
                    peer.sendall(b"-ERR " + data.replace(b"\r\n", b" ") + b"\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
