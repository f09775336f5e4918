"""Requests to one container of Azure Blob: credentials, connections, one request at a time.

azure-storage-blob signs, azure-identity gets tokens, azure-core sends. Nothing here knows what an
operation means, and nothing is retried, since the fetcher does. The one idea: operations go below
the SDK's own download and upload classes, which split, retry, copy and check on their own.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, quote
from xml.etree import ElementTree

import requests
import requests.adapters
import requests.utils
from azure.core.exceptions import AzureError
from azure.core.pipeline import Pipeline
from azure.core.pipeline.transport import HttpRequest, RequestsTransport
from azure.storage.blob import ContainerClient
from urllib3.connection import HTTPConnection

import fusefs
from fusefs.config import AzureConfig
from fusefs.errors import AccessDenied, ConfigError, FusefsError, ObjectNotFound
from fusefs.store.azure_errors import SDK_ERRORS, answered, translate
from fusefs.store.azure_source import (
    ACCOUNT,
    CONNECTION_STRING,
    account_in,
    account_of,
    connection_string,
    endpoint_of,
)
from fusefs.store.base import Source
from fusefs.store.http_errors import chain

KEY = "AZURE_STORAGE_KEY"
SAS_TOKEN = "AZURE_STORAGE_SAS_TOKEN"  # noqa: S105 # the name of a variable

API_VERSION = "2021-12-02"
"""Of the protocol. Listings since 2021-02-12 percent-encode names that XML cannot hold, and blocks
since 2019-12-12 may have 4,000 MiB; Azure goes on speaking old versions."""

CONNECT_TIMEOUT_S = 5.0
"""Linux repeats a lost SYN after 1 s and 3 s: two may be lost, and a dead address costs no more."""

READ_TIMEOUT_S = 20.0
"""Silence, not duration: the longest wait for the next bytes, as for S3."""

_SCOPE = "https://storage.azure.com/.default"
"""https://learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory"""

_REFRESH_BEFORE_S = 300.0
"""As early as azure-core renews tokens: they live for an hour or a day."""

_ERROR_BYTES_MAX = 65536
"""The body of an error is 400 bytes; reading it keeps the connection. More is not worth it."""


class Tokens:
    """Tokens of one identity for all threads; one of them fetches, the others wait.

    Kept here because some sources (the Azure CLI) start a process for each token.
    """

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._lock = threading.Lock()
        # The mutable state of Tokens is the last token, written under the lock.
        self._token: Any = None

    def __repr__(self) -> str:
        return "Tokens()"

    def current(self) -> str:
        """A token that is good for some minutes. Raises `SDK_ERRORS`."""
        with self._lock:
            if self._token is None or self._token.expires_on - time.time() < _REFRESH_BEFORE_S:
                self._token = self._credential.get_token(_SCOPE)
            return str(self._token.token)

    def close(self) -> None:
        """Let go of connections to the identity service."""
        self._credential.close()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks: at most one of the three. `signer` is a policy of azure-core."""

    signer: Any = None
    sas: str = field(default="", repr=False)
    tokens: Tokens | None = None

    @property
    def sas_expiry(self) -> datetime | None:
        """When the SAS ends, if there is one that says so."""
        with suppress(KeyError, ValueError):
            ends = datetime.fromisoformat(parse_qs(self.sas)["se"][0])
            return ends if ends.tzinfo else ends.replace(tzinfo=UTC)
        return None


class AzureClient:
    """Sends requests to one container. Thread-safe.

    `connections` is how many idle connections are kept: the number of threads that use it.
    Making one opens no connection and looks for no credentials: the first request does.
    """

    def __init__(
        self,
        source: Source,
        config: AzureConfig,
        connections: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.container = source.bucket
        self._source = source
        self._config = config
        self._connections = connections
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._lock = threading.Lock()
        # The mutable state of AzureClient is what the first request makes, under the lock: a
        # pipeline of azure-core, and the credentials it goes with.
        self._ready: tuple[Any, Credentials] | None = None

    @property
    def url(self) -> str:
        """The container's. Raises `ConfigError`."""
        return f"{endpoint_of(self._source, self._config)}/{quote(self.container)}"

    @property
    def where(self) -> str:
        """The subject of a sentence."""
        return f"the container {self.container!r} at {endpoint_of(self._source, self._config)}"

    def send(
        self,
        method: str,
        key: str,
        query: str,
        headers: Mapping[str, str],
        data: bytes | memoryview | None = None,
        *,
        stream: bool = False,
    ) -> Any:
        """One request; the `requests.Response`, whatever its status.

        `key` is "" for the container; `query` is encoded. With `stream` the body is still to come,
        and the caller's to read or close. Raises `SDK_ERRORS` and `FusefsError`.
        """
        pipeline, credentials = self._connected()
        url = f"{self.url}/{_path(key)}" if key else self.url
        asked = "&".join(part for part in (query, credentials.sas) if part)
        full = {
            "x-ms-version": API_VERSION,
            "x-ms-date": formatdate(usegmt=True),
            "User-Agent": f"fusefs/{fusefs.__version__}",
            # What is stored compressed comes as it is stored.
            "Accept-Encoding": "identity",
            **headers,
        }
        if data is not None:
            full["Content-Length"] = str(len(data))
        request = HttpRequest(method, f"{url}?{asked}" if asked else url, full)
        request.data = data  # type: ignore[assignment] # a memoryview is sent as it is
        if credentials.tokens is not None:
            request.headers["Authorization"] = f"Bearer {credentials.tokens.current()}"
        try:
            return pipeline.run(request, stream=stream).http_response.internal_response
        except SDK_ERRORS as error:
            # azure-core leaves cycles of errors, tracebacks and frames that hold errors. Without
            # this a failure would keep the caller's buffer until the next garbage collection.
            for cause in chain(error):
                cause.__traceback__ = None
                if isinstance(cause, AzureError):
                    cause.exc_traceback = None
            raise

    def ask(
        self,
        method: str,
        what: str,
        key: str = "",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        data: bytes | memoryview | None = None,
    ) -> Any:
        """One request whose whole answer is small and must be a success. Raises `FusefsError`."""
        try:
            answer = self.send(method, key, query, headers or {}, data)
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        if not 200 <= answer.status_code < 300:
            raise self.refusal(answer, what)
        return answer

    def ask_xml(self, what: str, key: str, query: str) -> ElementTree.Element:
        """A GET whose answer is XML: its root. Raises `FusefsError`."""
        answer = self.ask("GET", what, key, query)
        try:
            # Expat, since 2.4.1, bounds what entities expand to.
            return ElementTree.fromstring(answer.content)  # noqa: S314
        except SDK_ERRORS as error:
            raise translate(error, what) from error

    def refusal(self, answer: Any, what: str) -> FusefsError:
        """What an answer that is no success means; its body is left behind."""
        length = answer.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,9}", length) and int(length) <= _ERROR_BYTES_MAX:
            answer.raw.drain_conn()
        else:
            answer.close()
        expiry = self._connected()[1].sas_expiry
        return answered(answer.status_code, answer.headers, what, expiry)

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            pipeline, credentials = ready
            pipeline.__exit__()
            if credentials.tokens is not None:
                credentials.tokens.close()

    def _connected(self) -> tuple[Any, Credentials]:
        ready = self._ready
        if ready is None:
            with self._lock:
                ready = self._ready
                if ready is None:
                    endpoint = endpoint_of(self._source, self._config)
                    credentials = _find_credentials(self._source, self._config, endpoint)
                    signers = [] if credentials.signer is None else [credentials.signer]
                    transport = _make_transport(endpoint, self._connections, self._timeouts_s)
                    self._ready = ready = (Pipeline(transport, signers), credentials)
        return ready


def _path(key: str) -> str:
    """A blob's name in a URL. Raises `ObjectNotFound` for one that no URL can hold."""
    if any(segment in (".", "..") for segment in key.split("/")):
        # HTTP clients resolve such segments, and would fetch another blob.
        raise ObjectNotFound(f"{key!r} cannot be asked for: it has a '.' or '..' segment")
    return quote(key, safe="~/")


def _make_transport(
    endpoint: str, connections: int, timeouts_s: tuple[float, float]
) -> RequestsTransport:
    session = requests.Session()
    # The environment is read once, here: requests would do it for each request, and would put
    # what ~/.netrc says of the host in place of our signature.
    session.trust_env = False
    session.proxies.update(requests.utils.get_environ_proxies(endpoint))
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=connections)
    # Middleboxes forget idle connections: Azure's load balancer after four minutes.
    adapter.poolmanager.connection_pool_kw["socket_options"] = [
        *HTTPConnection.default_socket_options,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    session.mount(endpoint.partition("://")[0] + "://", adapter)
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and endpoint.startswith("https:") and not os.access(bundle, os.R_OK):
        raise ConfigError("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no readable file")
    return RequestsTransport(
        session=session,
        connection_timeout=timeouts_s[0],
        read_timeout=timeouts_s[1],
        connection_verify=bundle or True,
    )


def _find_credentials(source: Source, config: AzureConfig, endpoint: str) -> Credentials:
    """The first that there is: connection string, key, SAS, identity.

    What the environment holds for another account is not used: a SAS sent to a stranger is his.
    """
    if config.anonymous:
        return Credentials()
    account = source.server
    if "." in account:
        account = config.account or account_of(endpoint) or account.partition(".")[0]
    parts = connection_string()
    if parts and account_in(parts) in (None, account):
        if parts.get("ACCOUNTKEY"):
            return _signing(account, parts["ACCOUNTKEY"], endpoint, source, CONNECTION_STRING)
        if parts.get("SHAREDACCESSSIGNATURE"):
            return Credentials(sas=_plain_sas(parts["SHAREDACCESSSIGNATURE"]))
    if os.environ.get(ACCOUNT) in (None, "", account):
        if key := os.environ.get(KEY):
            return _signing(account, key, endpoint, source, KEY)
        if sas := os.environ.get(SAS_TOKEN):
            return Credentials(sas=_plain_sas(sas))
    if not endpoint.startswith("https:"):
        raise AccessDenied(
            f"the account {account!r} cannot be asked: tokens go over https only, and neither"
            f" {CONNECTION_STRING}, {KEY} nor {SAS_TOKEN} is set for it"
        )
    return Credentials(tokens=Tokens(_default_credential()))


def _signing(account: str, key: str, endpoint: str, source: Source, where: str) -> Credentials:
    try:
        base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise AccessDenied(f"the account key in {where} is no account key: copy it again") from None
    named = {"account_name": account, "account_key": key}
    return Credentials(ContainerClient(endpoint, source.bucket, credential=named).credential)


def _plain_sas(text: str) -> str:
    sas = text.strip().lstrip("?&")
    if "sig=" not in sas or not sas.isascii() or not sas.isprintable() or " " in sas:
        raise AccessDenied(f"what {SAS_TOKEN} holds is no SAS: it looks like sv=…&sp=rl&sig=…")
    return sas


def _default_credential() -> Any:
    try:
        identity = importlib.import_module("azure.identity")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"az:// finds no {CONNECTION_STRING}, {KEY} or {SAS_TOKEN}, and identities need a"
            " package that is not installed: pip install 'fusefs[azure-identity]', or set"
            " azure.anonymous"
        ) from error
    return identity.DefaultAzureCredential()
