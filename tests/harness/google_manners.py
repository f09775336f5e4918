"""What Google does and fake-gcs-server does not, as a proxy in front of it.

Pages of a listing, who may ask at all, MD5s that must fit, a generation of its own for whatever is
composed, parts that are taken by generation and gone afterwards, and answers that get lost on the
way. The one idea: a request is judged here first, and then carried out there.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.harness.fake_gcs import FakeGcs

_LIMIT_S = 30.0
_COMPOSE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/compose")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_PASSED_ON = ("Content-Type", "Range", "Accept-Encoding")
_OF_THE_CONNECTION = {"connection", "content-length", "transfer-encoding", "date"}


class GoogleManners:
    """The running proxy. Tests read `requests` (method and path) and set the rest.

    `tokens`: whose requests are answered, or None for everybody's. `forbidden`: nobody may.
    `damage`: what is uploaded loses a byte for another on the way. `checks`: MD5s must fit.
    """

    def __init__(self, server: FakeGcs) -> None:
        self.server = server
        self.endpoint = ""
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] | None = None
        self.forbidden = False
        self.damage = False
        self.checks = True
        self._lock = threading.Lock()
        self._to_lose: list[str] = []

    def lose_answer(self, to: str) -> None:
        """Carry out the next request whose path holds `to`, and hang up in place of an answer."""
        with self._lock:
            self._to_lose.append(to)

    def is_lost(self, path: str) -> bool:
        """Whether this is the one."""
        with self._lock:
            found = next((part for part in self._to_lose if part in path), None)
            if found is not None:
                self._to_lose.remove(found)
            return found is not None

    def refusal(self, authorization: str) -> tuple[int, bytes] | None:
        """The answer to somebody who may not ask."""
        if self.forbidden:
            return _error(403, "forbidden")
        if self.tokens is None or authorization.removeprefix("Bearer ") in self.tokens:
            return None
        return _error(401, "authError" if authorization else "required")


@contextmanager
def open_google_manners(server: FakeGcs) -> Iterator[GoogleManners]:
    """Run the proxy in threads of this process, on a free port."""
    manners = GoogleManners(server)

    class Handler(_Handler):
        google = manners

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        manners.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield manners
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    google: GoogleManners
    # A connection that nobody uses any more must not keep its thread.
    timeout = _LIMIT_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""

    def _serve(self) -> None:
        google = self.google
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        google.requests.append((self.command, self.path))
        if google.damage and "uploadType=multipart" in self.path:
            middle = len(body) * 3 // 4
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        refusal = google.refusal(self.headers.get("Authorization", "")) or _judge(
            google, self.path, body
        )
        if refusal is not None:
            self._answer(refusal[0], {"Content-Type": "application/json"}, refusal[1])
            return
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        # The server behind repeats all prefixes on every page: it is asked for all names at once.
        path = re.sub(r"&?(maxResults|pageToken)=[^&]*", "", self.path)
        status, given, data = _carry_out(google.server, self.command, path, body, headers)
        if self.command == "GET" and status == 200 and _LISTING.fullmatch(urlsplit(path).path):
            data = _page(data, self.path)
        if google.is_lost(self.path):
            self.close_connection = True
            return
        self._answer(status, given, data)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the names are of the standard library

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _OF_THE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _carry_out(
    server: FakeGcs, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    composed = _COMPOSE.fullmatch(urlsplit(path).path)
    if composed and unquote(composed[2]) in server.keys(composed[1]):
        # The server behind composes into the generation that is there.
        server.delete(composed[1], unquote(composed[2]))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_LIMIT_S)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        status, given, data = answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()
    if composed and status == 200:
        request = json.loads(body)
        for source in request["sourceObjects"] if request.get("deleteSourceObjects") else ():
            server.delete(composed[1], source["name"])
    return status, given, data


def _judge(google: GoogleManners, path: str, body: bytes) -> tuple[int, bytes] | None:
    """What Google refuses and the server behind would take."""
    composed = _COMPOSE.fullmatch(urlsplit(path).path)
    if composed:
        for source in json.loads(body)["sourceObjects"]:
            name = quote(source["name"], safe="")
            about = f"/storage/v1/b/{composed[1]}/o/{name}?generation={source['generation']}"
            status, _, _ = _carry_out(google.server, "GET", about, b"", {})
            if status != 200:
                return _error(404, "notFound")
    elif google.checks and "uploadType=multipart" in path:
        boundary = body.partition(b"\r\n")[0]
        _, metadata, rest = (part.partition(b"\r\n\r\n")[2] for part in body.split(boundary, 2))
        content = rest.removesuffix(b"\r\n" + boundary + b"--\r\n")
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        if json.loads(metadata).get("md5Hash", md5) != md5:
            return _error(400, "invalid")
    return None


def _page(data: bytes, path: str) -> bytes:
    """The page of the whole listing that was asked for: names in order, prefixes among them."""
    query = parse_qs(urlsplit(path).query)
    whole = json.loads(data)
    items = {item["name"]: item for item in whole.get("items", ())}
    names = sorted([*items, *whole.get("prefixes", ())])
    after = base64.b64decode(query.get("pageToken", [""])[0]).decode()
    names = [name for name in names if not after or name > after]
    shown = names[: min(int(query.get("maxResults", ["1000"])[0]), 1000)]
    page: dict[str, Any] = {"kind": "storage#objects"}
    page["items"] = [items[name] for name in shown if name in items]
    page["prefixes"] = [name for name in shown if name not in items]
    if len(shown) < len(names):
        page["nextPageToken"] = base64.b64encode(shown[-1].encode()).decode()
    return json.dumps(page).encode()


def _error(status: int, reason: str) -> tuple[int, bytes]:
    errors = [{"domain": "global", "reason": reason, "message": "hunter2 may not"}]
    error = {"code": status, "message": "hunter2 may not", "errors": errors}
    return status, json.dumps({"error": error}).encode()
