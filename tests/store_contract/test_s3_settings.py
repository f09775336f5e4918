"""What settings and environment do to the S3 store: credentials, endpoints, path style, TLS."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from fusefs.config import S3Config
from fusefs.errors import AccessDenied, ConfigError, FusefsError, StoreUnavailable
from fusefs.store.s3 import S3Store
from tests.store_contract.wire import (
    DATA,
    EXTENT,
    ID,
    SIZE,
    WireServer,
    answer,
    good,
    open_wire,
)

SETTINGS: dict[str, tuple[dict[str, str], S3Config, type[FusefsError]]] = {
    "no credentials": ({"AWS_ACCESS_KEY_ID": ""}, S3Config(), AccessDenied),
    "half the credentials": ({"AWS_SECRET_ACCESS_KEY": ""}, S3Config(), AccessDenied),
    "no such profile": ({}, S3Config(profile="nobody"), AccessDenied),
    "endpoint that is no URL": ({}, S3Config(endpoint_url="127.0.0.1:9"), ConfigError),
    "endpoint with a password": ({}, S3Config(endpoint_url="http://u:hunter2@h"), ConfigError),
    "region that is none": ({}, S3Config(region="not a region!"), ConfigError),
    "AWS_CONFIG_FILE that is none": ({"AWS_CONFIG_FILE": __file__}, S3Config(), ConfigError),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_work(
    name: str, server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting or environment that cannot work is one sentence, and asks nobody."""
    environment, config, expected = SETTINGS[name]
    for variable, value in environment.items():
        if value:
            monkeypatch.setenv(variable, value)
        else:
            monkeypatch.delenv(variable)
    endpoint = config.endpoint_url or f"http://127.0.0.1:{server.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = S3Store("bucket", config, 1)
    with pytest.raises(FusefsError) as raised:
        store.check("")
    assert type(raised.value) is expected
    assert "hunter2" not in str(raised.value)
    assert server.requests == []
    store.close()


@pytest.mark.parametrize(
    ("path_style", "host", "path"),
    [(None, "", "/bucket?"), (True, "", "/bucket?"), (False, "bucket.", "/?")],
)
def test_path_style(
    path_style: bool | None,
    host: str,
    path: str,
    server: WireServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Path style is automatic for an endpoint that is not Amazon's, and can be said either way."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{server.port}")
    body = b"<ListBucketResult></ListBucketResult>"
    server.answers.append(answer("200 OK", {"Content-Length": str(len(body))}, body))
    # Names below localhost lead to this machine only where a resolver says so.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    store = S3Store("bucket", S3Config(path_style=path_style), 1)
    store.check("")
    store.close()
    assert server.requests[0].startswith(f"GET http://{host}localhost:{server.port}{path}")


def test_amazon_is_spoken_to_by_host_name(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an endpoint the bucket is part of the host name at Amazon."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.answers.append(answer("403 Forbidden", {"Content-Length": "0"}, b"", "close"))
    store = S3Store("models", S3Config(region="eu-west-1"), 1)
    with pytest.raises(StoreUnavailable):
        store.check("")
    store.close()
    assert server.requests[0].startswith("CONNECT models.s3.eu-west-1.amazonaws.com:443")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    path = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path],
        check=True,
        capture_output=True,
    )
    if "CERTIFICATE" not in path.read_text():
        pytest.fail("openssl wrote no certificate")
    return path


def test_tls(certificate: Path, server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private authority is trusted through AWS_CA_BUNDLE; without it the message names that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with open_wire(context) as secured:
        config = S3Config(endpoint_url=f"https://127.0.0.1:{secured.port}")
        distrusting = S3Store("bucket", config, 1)
        with pytest.raises(ConfigError, match="AWS_CA_BUNDLE"):
            distrusting.check("")
        distrusting.close()
        assert secured.requests == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.with_name("missing")))
        missing = S3Store("bucket", config, 1)
        with pytest.raises(ConfigError, match="AWS_CA_BUNDLE"):
            missing.check("")
        missing.close()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        trusting = S3Store("bucket", config, 1)
        secured.answers += [good(), good()]
        for _ in range(2):
            buffer = bytearray(SIZE)
            trusting.read_into(ID, EXTENT, memoryview(buffer))
            assert buffer == DATA
        trusting.close()
