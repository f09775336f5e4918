"""What an az SOURCE may look like, which account and server it means, and with what credentials."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.config import AzureConfig, Config
from fusefs.errors import AccessDenied, ConfigError
from fusefs.store.azure import open_store
from fusefs.store.azure_client import AzureClient, Tokens, _find_credentials
from fusefs.store.azure_source import endpoint_of
from fusefs.store.source import parse_source
from tests.harness.azurite import VARIABLES

KEY = "aHVudGVyMg=="
STRING = f"DefaultEndpointsProtocol=https;AccountName=fromstring;AccountKey={KEY};"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No account and no credentials, whatever the machine has."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def configured(**settings: object) -> Config:
    """A configuration with these settings of azure."""
    return Config(azure=AzureConfig(**settings))  # type: ignore[arg-type] # of each the right type


KNOWN = {"AZURE_STORAGE_ACCOUNT": "acct"}


@pytest.mark.parametrize(
    ("text", "environment", "config", "normal"),
    [
        ("az://acct/models", {}, Config(), "az://acct/models/"),
        ("az://acct/models/a b/c%2F/", {}, Config(), "az://acct/models/a b/c%2F/"),
        ("az://models", KNOWN, Config(), "az://acct/models/"),
        ("az://models/llama/70b", KNOWN, Config(), "az://acct/models/llama/70b/"),
        ("az://acct/models/llama", KNOWN, Config(), "az://acct/models/llama/"),
        ("az://acct/acct", KNOWN, Config(), "az://acct/acct/"),
        ("az://models", {}, configured(account="other"), "az://other/models/"),
        ("az://models", KNOWN, configured(account="other"), "az://other/models/"),
        (
            "az://models",
            {"AZURE_STORAGE_CONNECTION_STRING": STRING},
            Config(),
            "az://fromstring/models/",
        ),
        (
            "az://models",
            {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"},
            Config(),
            "az://devstoreaccount1/models/",
        ),
        (
            "az://models",
            {},
            configured(endpoint_url="http://127.0.0.1:10000/devstoreaccount1"),
            "az://devstoreaccount1/models/",
        ),
        (
            "az://Acct.blob.core.windows.net/models/x",
            KNOWN,
            Config(),
            "az://acct.blob.core.windows.net/models/x/",
        ),
        ("az://acct/$root/x", {}, Config(), "az://acct/$root/x/"),
    ],
)
def test_good_sources(
    text: str,
    environment: dict[str, str],
    config: Config,
    normal: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A good SOURCE has one normal form that names its account, and that parses to itself."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    source = parse_source(text, config)
    assert source.text == normal
    _, _, server, container, *prefix = normal.split("/")
    assert (source.server, source.bucket) == (server, container)
    assert source.prefix == "/".join(prefix)
    assert parse_source(normal, config) == source


@pytest.mark.parametrize(
    ("text", "known", "says"),
    [
        ("az://", False, "no container"),
        ("az:///prefix", False, "no container"),
        ("az://models", False, "az://ACCOUNT/models"),
        ("az://acct", True, "az://acct/container"),
        ("az://acct//x", True, "no container"),
        ("az://acct.blob.core.windows.net", False, "no container"),
        ("az://acct..net/models", False, "not the host"),
        ("az://Acct/models", False, "not the name of a storage account"),
        ("az://acct/Models", False, "not a container name"),
        ("az://mo--dels", True, "not a container name"),
        ("az://mo", True, "not a container name"),
        ("az://acct/models/a//b", False, "segment"),
        ("az://acct/models/../b", False, "segment"),
        ("az://acct/models/bad\udcff", False, "UTF-8"),
        ("az://127.0.0.1:10000/acct/models", False, "azure.endpoint_url"),
        ("az://hunter2@acct/models", False, "no credentials"),
        ("az://acct/models/x?sv=1&sp=r&sig=hunter2", False, "no credentials"),
    ],
)
def test_bad_sources(text: str, known: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad SOURCE is a ConfigError of one line that says what to type and repeats no secret."""
    if known:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acct")
    with pytest.raises(ConfigError) as raised:
        parse_source(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes the parser fail otherwise than by ConfigError."""
    for start in ("az://", "az://acct/", "az://a.b/"):
        try:
            source = parse_source(start + text)
        except ConfigError:
            continue
        assert parse_source(source.text) == source
        assert source.prefix == "" or source.prefix.endswith("/")


@pytest.mark.parametrize(
    ("text", "environment", "config", "endpoint"),
    [
        ("az://acct/models", {}, AzureConfig(), "https://acct.blob.core.windows.net"),
        (
            "az://a.blob.core.cloudapi.de/models",
            {},
            AzureConfig(),
            "https://a.blob.core.cloudapi.de",
        ),
        (
            "az://models",
            {"AZURE_STORAGE_CONNECTION_STRING": STRING + "EndpointSuffix=core.chinacloudapi.cn"},
            AzureConfig(),
            "https://fromstring.blob.core.chinacloudapi.cn",
        ),
        (
            "az://models",
            {"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=http://h:1/me/"},
            AzureConfig(),
            "http://h:1/me",
        ),
        (
            "az://models",
            {"AZURE_STORAGE_CONNECTION_STRING": STRING},
            AzureConfig(account="other"),
            "https://other.blob.core.windows.net",
        ),
        (
            "az://acct/models",
            {},
            AzureConfig(account="acct", endpoint_url="http://127.0.0.1:9/acct/"),
            "http://127.0.0.1:9/acct",
        ),
    ],
)
def test_the_server(
    text: str,
    environment: dict[str, str],
    config: AzureConfig,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is the SOURCE's host, the setting's, the connection string's or Azure's own."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert endpoint_of(parse_source(text, Config(azure=config)), config) == endpoint


def test_two_servers_are_one_too_many() -> None:
    """A host in the SOURCE and another one in azure.endpoint_url is a ConfigError."""
    config = configured(endpoint_url="https://b.blob.core.windows.net")
    source = parse_source("az://a.blob.core.windows.net/models", config)
    with pytest.raises(ConfigError, match="leave one"):
        open_store(source, config).check("")


@pytest.mark.parametrize(
    "text",
    ["hunter2", "AccountName=acct;hunter2", "AccountName=acct;BlobEndpoint=ftp://u:hunter2@h"],
)
def test_a_connection_string_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection string that makes no sense is a ConfigError that does not repeat it."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_CONNECTION_STRING") as raised:
        endpoint_of(parse_source("az://models"), AzureConfig())
    assert "hunter2" not in str(raised.value)


def used(text: str, config: AzureConfig) -> str:
    """What kind of credentials a request would be made with."""
    source = parse_source(text, Config(azure=config))
    found = _find_credentials(source, config, endpoint_of(source, config))
    assert "hunter2" not in repr(found)
    if found.signer is not None:
        return f"key of {found.signer.account_name}"
    return found.sas or ("identity" if found.tokens else "nobody")


def test_the_order_of_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connection string, key, SAS, identity; nothing at all if anonymous."""
    host = "az://acct.blob.core.windows.net/models"
    assert used("az://acct/models", AzureConfig()) == "identity"
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=x")
    assert used("az://acct/models", AzureConfig()) == "sv=1&sig=x"
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert used("az://acct/models", AzureConfig()) == "key of acct"
    assert used(host, AzureConfig()) == "key of acct"
    assert used(host.replace("acct", "acct-secondary"), AzureConfig()) == "key of acct"
    assert used("az://acct/models", AzureConfig(anonymous=True)) == "nobody"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", STRING)
    assert used("az://fromstring/models", AzureConfig()) == "key of fromstring"


def test_credentials_of_another_account_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment holds for one account is not used for another."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acct")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=x")
    assert used("az://models", AzureConfig()) == "sv=1&sig=x"
    assert used("az://other.blob.core.windows.net/models", AzureConfig()) == "identity"
    monkeypatch.delenv("AZURE_STORAGE_SAS_TOKEN")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", STRING)
    assert used("az://other.blob.core.windows.net/models", AzureConfig()) == "identity"


@pytest.mark.parametrize(
    ("name", "value"),
    [("AZURE_STORAGE_KEY", "hunter2!"), ("AZURE_STORAGE_SAS_TOKEN", "hunter2 hunter2")],
)
def test_credentials_that_are_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key or SAS that cannot be one is AccessDenied that names the variable, not its value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(AccessDenied, match=name) as raised:
        used("az://acct/models", AzureConfig())
    assert "hunter2" not in str(raised.value)


def test_tokens_are_not_sent_in_the_clear() -> None:
    """Without https and without a key nothing is asked, and the sentence says what to set."""
    config = configured(account="acct", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(AccessDenied, match="https only"):
        open_store(parse_source("az://models", config), config).check("")


class _Token:
    def __init__(self, token: str, expires_on: float) -> None:
        self.token = token
        self.expires_on = expires_on


class _Identity:
    """A credential whose tokens count up; the first one has nearly expired."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_token(self, scope: str) -> _Token:
        self.asked.append(scope)
        return _Token(f"hunter{len(self.asked)}", 0.0 if len(self.asked) == 1 else 1e12)

    def close(self) -> None:
        self.asked.append("close")


def test_tokens_are_renewed() -> None:
    """A token is used until it is about to expire, by all threads."""
    identity = _Identity()
    tokens = Tokens(identity)
    assert [tokens.current() for _ in range(3)] == ["hunter1", "hunter2", "hunter2"]
    assert set(identity.asked) == {"https://storage.azure.com/.default"}
    assert "hunter" not in repr(tokens)
    tokens.close()
    assert identity.asked[-1] == "close"


def test_a_client_that_was_never_used_is_closed() -> None:
    """Making and closing a client asks nobody for anything."""
    client = AzureClient(parse_source("az://acct/models"), AzureConfig(), 1)
    client.close()
    client.close()
    assert client.url == "https://acct.blob.core.windows.net/models"


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("missing", "says"),
    [("azure.storage.blob", "fusefs[azure]"), ("azure.identity", "fusefs[azure-identity]")],
)
def test_a_missing_package_is_explained(missing: str, says: str) -> None:
    """Without the SDK, or without the one for identities, the message names the extra."""
    printed = run_python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from fusefs.config import Config\n"
        "from fusefs.errors import ConfigError\n"
        "from fusefs.store.source import open_store, parse_source\n"
        "try: open_store(parse_source('az://acct/models'), Config()).check('')\n"
        "except ConfigError as error: print(error)\n"
    )
    assert f"pip install '{says}'" in printed


def test_preload_touches_nothing() -> None:
    """Preloading opens no socket and starts no thread, and imports what is large."""
    printed = run_python(
        "import os, sys, threading\n"
        "from fusefs.store.source import parse_source, preload\n"
        "preload(parse_source('az://acct/models'))\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')\n"
        "         if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "print(threading.active_count(), any('socket:' in link for link in links))\n"
        "print(all(name in sys.modules for name in ('azure.storage.blob', 'azure.identity')))\n"
    )
    assert printed.splitlines() == ["1 False", "True"]
