"""`fusefs csi-webhook`: adds sidecars to the pods that ask for them, over HTTPS.

The API server posts an AdmissionReview, the answer allows, with a patch or without, or refuses with
a sentence; what to add is `fusefs.kubernetes.injection`. It asks the API server for nothing and
keeps nothing. Whoever reaches the port is a stranger, so all is bounded: connections, bytes, and
the time from the first byte of a handshake to the answer. One connection is one request.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusefs.errors import ConfigError
from fusefs.kubernetes.http import PodHandler, PodServer, serve_http
from fusefs.kubernetes.injection import Recipe, patch_of, wants_sidecars
from fusefs.kubernetes.metrics import webhook_metrics

log = logging.getLogger(__name__)

PATH = "/mutate"

BODY_BYTES_MAX = 4 << 20
"""The API server takes requests of at most 3 MiB; a review holds one of them."""

REQUEST_S = 10.0
"""For handshake, request and answer each: the API server waits no longer than that for all."""

CONNECTIONS_MAX = 32
"""Two cores answer 500 reviews in a second (measured), so few are under way at once. A body is in
memory twice while it is put together; with what JSON makes of one that is 460 MiB at the worst
(measured), of the chart's 512.
"""

_API = "admission.k8s.io/v1"


class NotAReview(Exception):
    """The body is no AdmissionReview that could be answered: HTTP 400."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say to a review, and one word for what was done: injected, left or refused."""

    body: bytes
    result: str


def answer_review(body: bytes, recipe: Recipe) -> Answer:
    """The AdmissionReview that answers the one in `body`. Raises NotAReview."""
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotAReview("the body is not JSON") from error
    request = review.get("request") if isinstance(review, dict) else None
    if not isinstance(request, dict) or review.get("apiVersion") != _API:
        raise NotAReview(f"the body is no AdmissionReview of {_API} with a request")
    uid = request.get("uid")
    if not isinstance(uid, str) or not uid:
        raise NotAReview("the request has no uid")
    response, result = _respond(request, recipe)
    whole = {"apiVersion": _API, "kind": "AdmissionReview", "response": {"uid": uid, **response}}
    return Answer(json.dumps(whole).encode(), result)


def _respond(request: dict[str, Any], recipe: Recipe) -> tuple[dict[str, Any], str]:
    """Pods that are made, and no subresource of theirs, are looked at; all else is let through."""
    pod = request.get("object")
    is_pod = request.get("resource") == {"group": "", "version": "v1", "resource": "pods"}
    if not is_pod or request.get("operation") != "CREATE" or request.get("subResource"):
        return {"allowed": True}, "left"
    if not isinstance(pod, dict):
        raise NotAReview("the request has no object")
    try:
        if not wants_sidecars(pod, recipe):
            return {"allowed": True}, "left"
        patch = patch_of(pod, recipe)
    except ConfigError as error:
        status = {"code": 422, "reason": "Invalid", "message": str(error)}
        return {"allowed": False, "status": status}, "refused"
    if not patch:
        return {"allowed": True}, "left"
    coded = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": coded}, "injected"


class Certificate:
    """`tls.crt` and `tls.key` of a folder, read again when they change.

    Kubelet replaces both at once, by a link. Files that do not fit are complained of, and the
    certificate from before stays.
    """

    def __init__(self, folder: Path) -> None:
        self._files = (folder / "tls.crt", folder / "tls.key")
        self._lock = threading.Lock()
        # The mutable state of Certificate is this pair, changed under the lock.
        # INVARIANT: `_seen` is how the files looked before `_context` was last tried.
        self._context: ssl.SSLContext | None = None
        self._seen: object = None

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Raises ConfigError if there never was a good one."""
        with self._lock:
            try:
                seen = [
                    (about.st_ino, about.st_size, about.st_mtime_ns)
                    for about in (file.stat() for file in self._files)
                ]
                if seen != self._seen or self._context is None:
                    self._seen = seen
                    self._context = self._read()
                    log.info("the certificate is that of %s", self._files[0])
            except OSError as error:  # of which ssl.SSLError is one
                if self._context is None:
                    raise ConfigError(
                        f"{self._files[0]} and {self._files[1].name} must be a certificate and its"
                        f" key, PEM: {error}"
                    ) from error
                log.warning("the certificate is not replaced: %s", error)
            return self._context

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A password, lest OpenSSL asks a terminal for one.
        context.load_cert_chain(*self._files, password="-")  # noqa: S106 - no secret
        return context


class WebhookServer(PodServer):
    """Answers reviews, a thread for each connection. `serve_forever` and `shutdown` are the base's.

    `server_close` waits for the answers under way, which takes `REQUEST_S` seconds at most for each
    of their parts.
    """

    daemon_threads = False
    request_queue_size = 128  # the default of 5 is less than a Deployment makes pods at once

    def __init__(self, port: int, certificate: Certificate, recipe: Recipe) -> None:
        self.certificate = certificate
        self.recipe = recipe
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        # Reviews are read one after another: with one interpreter two at once are no faster, and
        # what a stranger's 4 MiB of brackets become are up to 160 MiB (measured).
        self.reading = threading.Lock()
        self._lock = threading.Lock()
        # The mutable state of WebhookServer is the count of reviews by result, under the lock.
        self._reviews: Counter[str] = Counter()
        certificate.context()  # a folder that is wrong is said now, not at the first pod
        super().__init__(("", port), _Handler)

    def count(self, result: str) -> None:
        """One more review, or request that was none, with this result."""
        with self._lock:
            self._reviews[result] += 1

    def counts(self) -> dict[str, int]:
        """Reviews by result."""
        with self._lock:
            return dict(self._reviews)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, unless there are too many: then hang up."""
        if not self._free.acquire(blocking=False):
            self.count("overload")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands here, in the connection's own thread: the others must not wait for it."""
        request.settimeout(REQUEST_S)
        with self.certificate.context().wrap_socket(request, server_side=True) as secured:
            _Handler(secured, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A stranger that hangs up is no news; a mistake of ours is."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "a connection of %s broke", client_address, exc_info=error)


class _InTime(io.RawIOBase):
    """Bytes of a connection until a deadline, however slowly they come."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(PodHandler):
    """POST of a review, GET of /healthz."""

    server: WebhookServer

    def setup(self) -> None:
        """Read against a deadline for the whole request, not for each of its bytes."""
        super().setup()
        self.rfile: io.BufferedReader = io.BufferedReader(_InTime(self.connection, REQUEST_S))

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """For the readiness probe, which asks by TLS as the API server does."""
        if self.path == "/healthz":
            self.answer(200, b"ok\n")
        else:
            self.answer(404, f"reviews are posted to {PATH}\n".encode())

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        """Answer a review."""
        said = self.headers.get("Content-Length", "")
        if not (said.isascii() and said.isdigit() and len(said) < 20):
            self._refuse(400, "the request needs a Content-Length")
            return
        if int(said) > BODY_BYTES_MAX:
            self._pass_over(min(int(said), 4 * BODY_BYTES_MAX))
            self._refuse(413, f"the request has more than {BODY_BYTES_MAX} bytes")
            return
        body = self.rfile.read(int(said))
        if len(body) < int(said):
            self._refuse(400, "the request is shorter than its Content-Length")
            return
        if self.path.partition("?")[0] != PATH:  # the API server adds ?timeout=10s
            self.answer(404, f"reviews are posted to {PATH}\n".encode())
            return
        try:
            with self.server.reading:
                answer = answer_review(body, self.server.recipe)
        except NotAReview as error:
            self._refuse(400, str(error))
            return
        self.server.count(answer.result)
        self.answer(200, answer.body, "application/json")

    def _pass_over(self, size: int) -> None:
        """Read what is not wanted: who still sends would see a reset instead of the answer."""
        while size > 0 and (piece := self.rfile.read1(size)):
            size -= len(piece)

    def _refuse(self, status: int, text: str) -> None:
        self.server.count("malformed")
        self.answer(status, f"{text}\n".encode())

    def answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        """Send a whole answer, with a limit of time of its own."""
        self.connection.settimeout(REQUEST_S)
        super().answer(status, body, kind)


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """What the command was told. Ports are numbers, `http_port` 0 is nowhere."""

    recipe: Recipe
    port: int
    certificates: Path
    http_port: int


def run_webhook(options: WebhookOptions) -> int:
    """Serve until SIGTERM; exit status 0. Raises ConfigError or OSError."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = WebhookServer(options.port, Certificate(options.certificates), options.recipe)
    threading.Thread(target=server.serve_forever, name="webhook", daemon=True).start()
    if options.http_port:
        serve_http(options.http_port, lambda: None, lambda: webhook_metrics(server.counts()))
    log.info("sidecars for volumes of %s from port %d", options.recipe.driver, server.server_port)
    ended.wait()
    server.shutdown()
    server.server_close()
    log.info("ended in order")
    return 0
