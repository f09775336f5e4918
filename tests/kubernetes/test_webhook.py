"""The webhook as the API server and as strangers meet it: the real HTTPS server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.errors import ConfigError
from fusefs.kubernetes import webhook
from fusefs.kubernetes.webhook import BODY_BYTES_MAX, Certificate, WebhookServer
from tests.conftest import ExpectedWarnings
from tests.harness.weed import choose_ports
from tests.kubernetes.pods import IMAGE, RECIPE, patch_in, patched, pod, review, volume

TIMEOUT_S = 60.0


def _make_certificate(folder: Path, name: str) -> None:
    """A certificate of its own making for localhost, put there as kubelet puts it: by a link."""
    data = folder / f"..{name}"
    data.mkdir(parents=True)
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name}"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", data / "tls.key", "-out", data / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    link = folder / "..half"
    link.symlink_to(data.name)
    link.rename(folder / "..data")
    for file in ("tls.crt", "tls.key"):
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder as the webhook's container has it."""
    folder = tmp_path / "certificate"
    _make_certificate(folder, "first")
    return folder


@contextmanager
def _open_server(folder: Path) -> Iterator[WebhookServer]:
    server = WebhookServer(0, Certificate(folder), RECIPE)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(certificates: Path) -> Iterator[WebhookServer]:
    """The server, on a port of its own."""
    with _open_server(certificates) as server:
        yield server


def _trusting(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / "tls.crt"))


def _ask(
    port: int,
    trust: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT_S, context=trust)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_server_answers_reviews(server: WebhookServer, certificates: Path) -> None:
    """A review over HTTPS, with the parameter that the API server adds, gets its patch."""
    trust = _trusting(certificates)
    body = json.dumps(review(pod(volume()))).encode()
    status, answer = _ask(server.server_port, trust, "POST", "/mutate?timeout=10s", body)
    assert status == 200
    assert patched(pod(), patch_in(answer))["spec"]["initContainers"][0]["name"] == "fusefs"
    assert _ask(server.server_port, trust, "GET", "/healthz") == (200, b"ok\n")
    assert server.counts() == {"injected": 1}


def test_strangers_are_sent_away(server: WebhookServer, certificates: Path) -> None:
    """Bodies that are none, too long, or of no known length: 400 and 413; other paths: 404."""
    trust = _trusting(certificates)

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return _ask(server.server_port, trust, method, path, body, named)[0]

    assert ask("POST", "/mutate", b"{}") == 400
    assert ask("POST", "/mutate", b"x" * (BODY_BYTES_MAX + 1)) == 413
    assert ask("POST", "/mutate", None, Content_Length="-1") == 400
    assert ask("POST", "/mutate", None, Content_Length="1_0") == 400
    assert ask("POST", "/mutate", None, Transfer_Encoding="chunked") == 400
    assert ask("POST", "/elsewhere", b"{}") == 404
    assert ask("GET", "/mutate") == 404
    assert ask("PUT", "/mutate") == 501
    assert server.counts() == {"malformed": 5}


def _what_comes(connection: socket.socket) -> bytes:
    """What the other end says before it hangs up, which it may do harshly."""
    try:
        return connection.recv(1024)
    except ConnectionResetError:
        return b""


def test_old_tls_and_no_tls_are_refused(server: WebhookServer, certificates: Path) -> None:
    """TLS before 1.2, and plain HTTP, get no answer; the next connection does."""
    old = _trusting(certificates)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"(?i)tlsv1|protocol|reset|eof"):
        _ask(server.server_port, old, "GET", "/healthz")
    with socket.create_connection(("localhost", server.server_port), TIMEOUT_S) as plain:
        plain.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200" not in _what_comes(plain)
    assert _ask(server.server_port, _trusting(certificates), "GET", "/healthz")[0] == 200


def test_who_says_nothing_holds_up_nobody(
    server: WebhookServer, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a handshake, and a request that never ends, end at the deadline."""
    monkeypatch.setattr(webhook, "REQUEST_S", 0.5)
    trust = _trusting(certificates)
    address = ("localhost", server.server_port)
    with (
        socket.create_connection(address, TIMEOUT_S) as silent,
        trust.wrap_socket(
            socket.create_connection(address, TIMEOUT_S), server_hostname="localhost"
        ) as slow,
    ):
        slow.sendall(b"POST /mutate HTTP/1.1\r\nContent-Length: 100\r\n\r\nx")
        assert _ask(server.server_port, trust, "GET", "/healthz")[0] == 200
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""


def test_too_many_at_once_are_hung_up_on(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the limit a connection ends at once, and is counted; afterwards there is room again."""
    monkeypatch.setattr(webhook, "CONNECTIONS_MAX", 1)
    trust = _trusting(certificates)
    with _open_server(certificates) as server:
        address = ("localhost", server.server_port)
        with socket.create_connection(address, TIMEOUT_S):
            with socket.create_connection(address, TIMEOUT_S) as late:
                assert late.recv(1) == b""
            assert server.counts() == {"overload": 1}
        assert _wait_until_healthy(server.server_port, trust) == 200


def _wait_until_healthy(port: int, trust: ssl.SSLContext) -> int:
    """The status of the first answer: who was hung up on tries again."""
    for _ in range(1000):
        try:
            return _ask(port, trust, "GET", "/healthz")[0]
        except OSError:
            continue
    pytest.fail("nobody ever answered")


def test_a_new_certificate_is_taken_up(server: WebhookServer, certificates: Path) -> None:
    """After kubelet replaced the files the next connection sees the new certificate."""
    before = _trusting(certificates)
    assert _ask(server.server_port, before, "GET", "/healthz")[0] == 200
    _make_certificate(certificates, "second")
    assert _ask(server.server_port, _trusting(certificates), "GET", "/healthz")[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        _ask(server.server_port, before, "GET", "/healthz")


def test_a_bad_certificate_does_not_replace_a_good_one(
    server: WebhookServer, certificates: Path, expect_warning: ExpectedWarnings
) -> None:
    """Half a pair, or none, is complained of; what was there before goes on, until a good one."""
    expect_warning("the certificate is not replaced")
    trust = _trusting(certificates)
    assert _ask(server.server_port, trust, "GET", "/healthz")[0] == 200
    (certificates / "..data").joinpath("tls.key").write_text("no key")
    assert _ask(server.server_port, trust, "GET", "/healthz")[0] == 200
    (certificates / "..data").joinpath("tls.key").unlink()
    assert _ask(server.server_port, trust, "GET", "/healthz")[0] == 200
    _make_certificate(certificates, "second")
    assert _ask(server.server_port, _trusting(certificates), "GET", "/healthz")[0] == 200


def test_a_folder_without_a_certificate_is_said_at_once(tmp_path: Path) -> None:
    """The process does not start, with a sentence that names the files."""
    with pytest.raises(ConfigError, match=r"tls\.crt and tls\.key must be a certificate"):
        WebhookServer(0, Certificate(tmp_path), RECIPE)


def test_the_command_serves_until_it_is_told_to_end(certificates: Path) -> None:
    """`fusefs csi-webhook` answers by HTTPS, counts by HTTP, and ends in order at SIGTERM."""
    port, http_port = choose_ports(2)
    process = subprocess.Popen(
        [sys.executable, "-m", "fusefs.cli", "csi-webhook", f"--image={IMAGE}", f"--port={port}",
         f"--cert-dir={certificates}", f"--http-port={http_port}"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "sidecars for volumes of" in line:
                break
        trust = _trusting(certificates)
        body = json.dumps(review(pod())).encode()
        assert _ask(port, trust, "POST", "/mutate", body)[0] == 200
        page = http.client.HTTPConnection("localhost", http_port, timeout=TIMEOUT_S)
        page.request("GET", "/metrics")
        text = page.getresponse().read().decode()
        page.close()
        assert 'fusefs_webhook_reviews_total{result="injected"} 1' in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert "ended in order" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
