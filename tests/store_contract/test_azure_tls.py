"""The Azure store over TLS: whom it trusts, and the tokens of a workload identity."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusefs.config import AzureConfig, Config
from fusefs.errors import AccessDenied, ConfigError
from fusefs.store.base import Store
from fusefs.store.source import open_store, parse_source
from tests.harness.azurite import VARIABLES
from tests.store_contract.wire import (
    DATA,
    EXTENT,
    ID,
    SIZE,
    Answer,
    WireServer,
    answer,
    good,
    open_wire,
)


@dataclass(frozen=True, slots=True)
class Secured:
    """A server with a certificate of its own making."""

    server: WireServer
    certificate: Path

    def store(self) -> Store:
        """A store on it."""
        endpoint = f"https://127.0.0.1:{self.server.port}"
        config = Config(azure=AzureConfig(account="acct", endpoint_url=endpoint))
        return open_store(parse_source("az://models", config), config)


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    """That server, and an environment that names nobody."""
    for name in (*VARIABLES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with open_wire(context) as server:
        yield Secured(server, path)


def test_who_is_trusted(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private authority is trusted through REQUESTS_CA_BUNDLE; without it the message says so."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", "aHVudGVyMg==")
    for bundle in (None, str(secured.certificate.with_name("missing"))):
        if bundle:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        store = secured.store()
        with pytest.raises(ConfigError, match="REQUESTS_CA_BUNDLE"):
            store.check("")
        store.close()
    assert secured.server.requests == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secured.certificate))
    store = secured.store()
    secured.server.answers += [good(), good()]
    for _ in range(2):
        buffer = bytearray(SIZE)
        store.read_into(ID, EXTENT, memoryview(buffer))
        assert buffer == DATA
    store.close()


def token(value: str, expires_in_s: int) -> Answer:
    """What Microsoft's login service says. It hangs up, since our server reads heads only."""
    body = json.dumps({"access_token": value, "expires_in": expires_in_s, "token_type": "Bearer"})
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return answer("200 OK", dict(headers), body.encode(), "close")


def test_a_workload_identity(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's token is exchanged for Azure's, which is renewed before it expires."""
    federated = tmp_path / "token"
    federated.write_text("hunter2")
    for name, value in (
        ("AZURE_AUTHORITY_HOST", f"https://127.0.0.1:{secured.server.port}"),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_FEDERATED_TOKEN_FILE", str(federated)),
        ("REQUESTS_CA_BUNDLE", str(secured.certificate)),
    ):
        monkeypatch.setenv(name, value)
    page = b"<EnumerationResults><Blobs/></EnumerationResults>"
    listing = answer("200 OK", {"Content-Length": str(len(page))}, page)
    refusal = answer(
        "401 Unauthorized",
        {"Content-Length": "0", "x-ms-error-code": "InvalidAuthenticationInfo"},
    )
    secured.server.answers += [token("first", 0), listing]
    secured.server.answers += [token("second", 3600), listing, refusal]
    store = secured.store()
    store.check("")
    store.check("")
    with pytest.raises(AccessDenied, match="InvalidAuthenticationInfo") as raised:
        store.check("")
    assert "second" not in str(raised.value)
    # urllib3 closes connections when nothing refers to their pool, and the failure's frames do.
    del raised
    store.close()
    kinds = [head.partition("?")[0].partition(" HTTP")[0] for head in secured.server.requests]
    login, listed = "POST /tenant/oauth2/v2.0/token", "GET /models"
    assert kinds == [login, listed, login, listed, listed]
    used = [head.partition("Bearer ")[2].partition("\r\n")[0] for head in secured.server.requests]
    assert used == ["", "first", "", "second", "second"]
