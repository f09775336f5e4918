"""How the Google store comes by credentials, and what it says when it does not."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fusefs.config import GcsConfig
from fusefs.errors import AccessDenied, ConfigError, FusefsError, StoreUnavailable
from fusefs.objects import Extent
from fusefs.store.gcs import GcsStore
from fusefs.store.gcs_write import GcsWriter
from tests.harness.mounted import ROOT
from tests.store_contract.gcs_subject import GcsSubject
from tests.store_contract.gcs_wire import google_good, json_answer, read
from tests.store_contract.wire import DATA, SIZE, open_wire

VARIABLES = ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT")


class TokenServer:
    """Whoever issues tokens: a metadata server, and Google's token endpoint. Each is a new one."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.issued: list[str] = []
        self.asked: list[str] = []
        self.refusal: dict[str, str] | None = None

    def answer(self, path: str) -> tuple[int, dict[str, Any] | str]:
        """Status and body."""
        self.asked.append(path)
        if self.refusal is not None:
            return 400, self.refusal
        if path.endswith("/token") or "/token?" in path:
            self.issued.append(f"ya29.hunter2-{len(self.issued)}")
            return 200, {"access_token": self.issued[-1], "expires_in": 3600}
        if "recursive" in path:
            return 200, {"email": "mount@project.iam.gserviceaccount.com", "scopes": ["all"]}
        if "universe" in path:
            return 404, "not here"
        return 200, "project"


@contextmanager
def open_token_server() -> Iterator[TokenServer]:
    """Run it in threads of this process, on a free port."""
    tokens = TokenServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = tokens.answer(self.path)
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Metadata-Flavor", "Google")
            kind = "text/plain" if isinstance(body, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        tokens.endpoint = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without credentials, and a home without any."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    """A service account's key file, and the token endpoint that it names."""
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with open_token_server() as server:
        path = tmp_path / "key.json"
        about = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "hunter2",
            "private_key": key,
            "client_email": "mount@project.iam.gserviceaccount.com",
            "token_uri": f"http://{server.endpoint}/token",
        }
        path.write_text(json.dumps(about))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield server


def store_at(gcs: GcsSubject) -> GcsStore:
    """A store that looks for credentials."""
    return GcsStore(gcs.bucket, GcsConfig(endpoint_url=gcs.google.endpoint), 2)


def failure_of(store: GcsStore) -> tuple[type[FusefsError], str]:
    """Class and sentence of a failed request; the error is gone then, with its connection."""
    try:
        store.check("")
    except FusefsError as error:
        return type(error), str(error)
    pytest.fail("the request succeeded")


def test_a_token_is_shown(gcs: GcsSubject, key_file: TokenServer) -> None:
    """A key file becomes a token, which all requests share."""
    gcs.google.tokens = {"ya29.hunter2-0"}
    gcs.put("object", b"data")
    store = store_at(gcs)
    assert store.head("object").size == 4
    assert store.list_page("", None).objects != ()
    assert key_file.issued == ["ya29.hunter2-0"]
    store.close()


def test_a_token_that_expired_is_renewed(gcs: GcsSubject, key_file: TokenServer) -> None:
    """A token that is good no more is replaced in the middle of things, without a new mount."""
    gcs.google.tokens = {"ya29.hunter2-0"}
    gcs.put("object", b"data")
    store = store_at(gcs)
    meta = store.head("object")
    gcs.google.tokens = {"ya29.hunter2-1"}
    assert store.head("object") == meta
    assert key_file.issued == ["ya29.hunter2-0", "ya29.hunter2-1"]
    store.close()


def test_the_account_of_a_machine_or_pod(gcs: GcsSubject) -> None:
    """At Google the metadata server gives the token, and a new one for one that is good no more."""
    gcs.put("object", b"data")
    gcs.google.tokens = {"ya29.hunter2-1"}
    code = (
        "from fusefs.config import GcsConfig\n"
        "from fusefs.store.gcs import GcsStore\n"
        f"store = GcsStore({gcs.bucket!r}, GcsConfig(endpoint_url={gcs.google.endpoint!r}), 1)\n"
        "print(store.head('object').size, len(store.list_page('', None).objects))\n"
    )
    with open_token_server() as server:
        # google-auth looks at these variables when it is imported.
        names = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
        environment = {**os.environ, "NO_GCE_CHECK": "false"}
        environment |= dict.fromkeys(names, server.endpoint)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["4", "1"]
        assert server.issued == ["ya29.hunter2-0", "ya29.hunter2-1"]


def test_a_read_whose_token_expired(key_file: TokenServer) -> None:
    """The bytes of a read are those of the answer to the new token."""
    with open_wire() as wire:
        wire.answers += [json_answer({}, "401 Unauthorized"), google_good()]
        store = GcsStore("bucket", GcsConfig(endpoint_url=f"http://127.0.0.1:{wire.port}"), 1)
        buffer = bytearray(SIZE)
        read(store, buffer)
        assert buffer == DATA
        shown = [request.lower().count("bearer ya29") for request in wire.requests]
        assert shown == [1, 1]
        assert wire.requests[0] != wire.requests[1]
        store.close()


def test_an_upload_whose_token_expired(gcs: GcsSubject, key_file: TokenServer) -> None:
    """What is written is sent again, from its start, with the new token."""
    gcs.google.tokens = {"ya29.hunter2-1"}
    writer = GcsWriter(gcs.bucket, "", GcsConfig(endpoint_url=gcs.google.endpoint), 1)
    meta = writer.put("object", DATA)
    writer.close()
    buffer = bytearray(SIZE)
    gcs.google.tokens = None
    gcs.store.read_into(meta.id, Extent(0, SIZE), memoryview(buffer))
    assert buffer == DATA


def test_tokens_that_are_refused(gcs: GcsSubject, key_file: TokenServer) -> None:
    """A token that stays refused is AccessDenied, after no more than a few new ones."""
    gcs.google.tokens = set()
    store = store_at(gcs)
    with pytest.raises(AccessDenied, match="renew"):
        store.check("")
    assert 1 <= len(key_file.issued) <= 3
    store.close()


def test_credentials_that_google_does_not_renew(gcs: GcsSubject, key_file: TokenServer) -> None:
    """A key that was withdrawn, or a wrong clock, is told with Google's word, and no secret."""
    key_file.refusal = {"error": "invalid_grant", "error_description": "hunter2: check your iat"}
    store = store_at(gcs)
    with pytest.raises(AccessDenied, match=r"\(invalid_grant\).*clock") as raised:
        store.check("")
    assert "hunter2" not in str(raised.value)
    assert gcs.google.requests == []
    store.close()


def test_nobody_issues_tokens(
    gcs: GcsSubject, key_file: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the token endpoint cannot be reached, another try may help."""
    path = tmp_path / "key.json"
    path.write_text(path.read_text().replace(key_file.endpoint, "127.0.0.1:9"))
    store = store_at(gcs)
    with pytest.raises(StoreUnavailable, match="tokens"):
        store.check("")
    store.close()


UNUSABLE = {
    "no credentials": None,
    "no such file": "missing.json",
    "a file that is no JSON": "not JSON",
    "a file of another kind": '{"type": "hunter2"}',
    "half a key": '{"type": "service_account", "private_key": "hunter2"}',
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_no_credentials(
    name: str, gcs: GcsSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without usable credentials one sentence says where they could come from; nobody is asked."""
    content = UNUSABLE[name]
    if content is not None:
        path = tmp_path / "key.json"
        if name != "no such file":
            path.write_text(content)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    store = store_at(gcs)
    with pytest.raises(AccessDenied, match="gcloud auth application-default login") as raised:
        store.check("")
    assert "hunter2" not in str(raised.value)
    assert gcs.google.requests == []
    store.close()


def test_the_emulator_asks_for_none(gcs: GcsSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    """With STORAGE_EMULATOR_HOST nobody looks for credentials, unless told to."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.google.endpoint)
    store = GcsStore(gcs.bucket, GcsConfig(), 1)
    store.check("")
    store.close()
    asking = GcsStore(gcs.bucket, GcsConfig(anonymous=False), 1)
    with pytest.raises(AccessDenied):
        asking.check("")
    asking.close()


def test_an_emulator_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """STORAGE_EMULATOR_HOST without a scheme is refused in a sentence that names it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    store = GcsStore("bucket", GcsConfig(), 1)
    with pytest.raises(ConfigError, match="STORAGE_EMULATOR_HOST"):
        store.check("")
    store.close()


def test_a_netrc_is_not_shown(gcs: GcsSubject, key_file: TokenServer, tmp_path: Path) -> None:
    """A password for the host in ~/.netrc does not take the token's place."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login somebody password hunter2\n")
    netrc.chmod(0o600)
    gcs.google.tokens = {"ya29.hunter2-0"}
    store = store_at(gcs)
    store.check("")
    store.close()
    assert gcs.google.requests != []


def test_google_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint it is Google's own, by TLS."""
    with open_wire() as wire:
        wire.answers.append(json_answer({}, "403 Forbidden", "close"))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{wire.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        store = GcsStore("models", GcsConfig(anonymous=True), 1)
        with pytest.raises(StoreUnavailable):
            store.check("")
        store.close()
        assert wire.requests[0].startswith("CONNECT storage.googleapis.com:443")


def test_a_certificate_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private authority is trusted through REQUESTS_CA_BUNDLE; the messages name it."""
    path = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with open_wire(context) as secured:
        config = GcsConfig(endpoint_url=f"https://127.0.0.1:{secured.port}", anonymous=True)
        for bundle in (None, str(tmp_path / "missing.pem")):
            if bundle is not None:
                monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
            store = GcsStore("bucket", config, 1)
            found, sentence = failure_of(store)
            assert found is ConfigError
            assert "REQUESTS_CA_BUNDLE" in sentence
            store.close()
        assert secured.requests == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
        store = GcsStore("bucket", config, 1)
        secured.answers += [google_good(), google_good()]
        for _ in range(2):
            buffer = bytearray(SIZE)
            read(store, buffer)
            assert buffer == DATA
        assert secured.connections == 2
        store.close()
