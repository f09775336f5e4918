"""An API server in so far as the plugin meets one: CSINodes, nodes and their taints, over TLS.

It checks the token, and applies JSON patches as the real one does, tests and all, so that a patch
that is bound to the wrong thing fails here as well. What else may go wrong is lined up by a test.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fusefs.kubernetes.taint import ApiServer

Taint = dict[str, str]

TIMEOUT_S = 20.0
"""No connection of a test lives longer."""


class Stub:
    """What the server has, what it is to refuse, and what it was asked.

    The mutable state of Stub is all of it; tests change it between requests, or in `on_patch`.
    """

    def __init__(self, account: Path) -> None:
        self.account = account
        self.port = 0
        self.drivers: dict[str, list[Any] | None] = {}
        self.taints: dict[str, list[Taint]] = {}
        self.answers: deque[tuple[str, int]] = deque()
        """The next request whose "VERB resource" begins so is answered with this status."""
        self.on_patch: Callable[[], None] = lambda: None
        """Called between a patch's arrival and its application."""
        self.page = ""
        """Said instead of every object, if anything."""
        self.requests: list[str] = []
        self.patches: list[list[dict[str, Any]]] = []
        self.said_token("first")

    @property
    def api(self) -> ApiServer:
        """Where it is, for the plugin."""
        return ApiServer("127.0.0.1", self.port, self.account)

    def said_token(self, token: str) -> None:
        """Give the account another token; the one before is worth nothing any more."""
        self.token = token
        (self.account / "token").write_text(f"{token}\n")

    def answer(
        self, method: str, path: str, authorization: str, patch: list[dict[str, Any]] | None
    ) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        group, resource, name = path.rsplit("/", 2)
        asked = f"{method} {resource}"
        self.requests.append(asked)
        if authorization != f"Bearer {self.token}":
            return http.client.UNAUTHORIZED, {}
        if self.answers and asked.startswith(self.answers[0][0]):
            return self.answers.popleft()[1], {"message": "hunter2"}
        if group == "/apis/storage.k8s.io/v1" and name in self.drivers:
            listed = self.drivers[name]
            return http.client.OK, {"spec": {"drivers": listed} if listed is not None else {}}
        if group != "/api/v1" or name not in self.taints:
            return http.client.NOT_FOUND, {}
        if patch is not None:
            self.patches.append(patch)
            self.on_patch()
            try:
                self.taints[name] = _patched(self.taints[name], patch)
            except (AssertionError, LookupError):
                return http.client.UNPROCESSABLE_ENTITY, {}
        taints = self.taints[name]
        return http.client.OK, {"spec": {"taints": taints} if taints else {}}


def _patched(taints: list[Taint], patch: list[dict[str, Any]]) -> list[Taint]:
    """RFC 6902, for tests and removals of taints. Raises AssertionError or LookupError."""
    made = list(taints)
    for step in patch:
        place = int(step["path"].removeprefix("/spec/taints/"))
        if step["op"] == "test":
            assert made[place] == step["value"]
        else:
            assert step["op"] == "remove"
            del made[place]
    return made


def make_authority(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that is its own authority: `ca.crt` in `folder`."""
    key = folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=kubernetes -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", folder / "ca.crt"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", key)
    return context


@contextmanager
def open_api_server(account: Path) -> Iterator[Stub]:
    """A server, and in `account` what a pod has of it."""
    stub = Stub(account)

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_GET(self) -> None:
            self._answer(None)

        def do_PATCH(self) -> None:
            assert self.headers["Content-Type"] == "application/json-patch+json"
            length = int(self.headers["Content-Length"])
            self._answer(json.loads(self.rfile.read(length)))

        def _answer(self, patch: list[dict[str, Any]] | None) -> None:
            authorization = self.headers["Authorization"]
            status, found = stub.answer(self.command, self.path, authorization, patch)
            body = (stub.page or json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of a client that does not like the certificate."""

    server = Server(("127.0.0.1", 0), Handler)
    # The handshake is the thread's of its connection: else one bad client would hold up all.
    server.socket = make_authority(account).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    stub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
