"""`/healthz`, `/readyz` and `/metrics` over HTTP, for probes and Prometheus: all from memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Trouble = Callable[[], str | None]
"""Says what is wrong, or None."""


class PodServer(ThreadingHTTPServer):
    """Listens for IPv4 and IPv6, as far as the machine has them: a cluster may have one alone."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True

    def server_bind(self) -> None:
        """With IPv6, take what comes by IPv4 as well. Raises OSError."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class PodHandler(BaseHTTPRequestHandler):
    """What handlers of a pod's pages have in common."""

    def answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a probe comes every few seconds, and metrics count the rest."""


def serve_http(
    port: int, health: Trouble, metrics: Callable[[], str], ready: Trouble | None = None
) -> PodServer:
    """Answer on `port` from a thread; without `ready`, who is well is ready. Raises OSError."""
    probes = {"/healthz": health, "/readyz": ready or health}

    class Handler(PodHandler):
        """Answers GET."""

        timeout = 10

        def do_GET(self) -> None:
            """The three pages."""
            if self.path in probes:
                trouble = probes[self.path]()
                self.answer(503 if trouble else 200, f"{trouble or 'ok'}\n".encode())
            elif self.path == "/metrics":
                kind = "text/plain; version=0.0.4; charset=utf-8"
                self.answer(200, metrics().encode(), kind)
            else:
                self.answer(404, b"there are /healthz, /readyz and /metrics\n")

    server = PodServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
