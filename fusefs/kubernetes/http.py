"""`/healthz`, `/readyz` and `/metrics` over HTTP, for probes and Prometheus: all from memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Trouble = Callable[[], str | None]
"""Says what is wrong, or None."""


def serve_http(
    port: int, health: Trouble, metrics: Callable[[], str], ready: Trouble | None = None
) -> ThreadingHTTPServer:
    """Answer on `port` from a thread; without `ready`, who is well is ready. Raises OSError."""
    probes = {"/healthz": health, "/readyz": ready or health}

    class Handler(BaseHTTPRequestHandler):
        """Answers GET."""

        timeout = 10

        def do_GET(self) -> None:
            """The three pages."""
            if self.path in probes:
                trouble = probes[self.path]()
                self._answer(503 if trouble else 200, f"{trouble or 'ok'}\n")
            elif self.path == "/metrics":
                self._answer(200, metrics(), "text/plain; version=0.0.4; charset=utf-8")
            else:
                self._answer(404, "there are /healthz, /readyz and /metrics\n")

        def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: a probe comes every few seconds."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
