"""One bucket at Google as the SDK reaches it: credentials, endpoint, connections.

Shared by the store and the writer. Google's SDK finds the endpoint and asks for names, google-auth
finds and renews the credentials. The one idea: all requests, the SDK's and ours for bytes, go
through one session that keeps a connection for every thread, and nothing below it retries.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import google.auth
import google.cloud.storage
import requests
from google.api_core.client_info import ClientInfo
from google.api_core.exceptions import from_http_response
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

import fusefs
from fusefs.config import GcsConfig
from fusefs.errors import ConfigError, StoreUnavailable
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.store.gcs_errors import SDK_ERRORS, translate

CONNECT_TIMEOUT_S = 5.0
"""Linux repeats a lost SYN after 1 s and 3 s: two may be lost, and a dead address costs no more."""

READ_TIMEOUT_S = 20.0
"""Silence, not duration: the longest wait for the next bytes. Slow first bytes take a few seconds;
20 s leaves time for six tries within the default `read_deadline_s` of 120 s."""

SCOPE = "https://www.googleapis.com/auth/devstorage."
"""What a token may be used for: this with `read_only` or `read_write` behind it."""

EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"

_HOSTS = 2
"""Pools of connections: one server, and one for whoever redirects to another."""

_USER_AGENT = f"fusefs/{fusefs.__version__} google-cloud-storage/{google.cloud.storage.__version__}"


@dataclass(frozen=True, slots=True)
class _Link:
    """What exists once somebody has asked for something."""

    session: Any
    client: Any
    bucket: Any


class GcsClient:
    """A bucket, connected by the first request. Thread-safe.

    `connections` is how many idle connections are kept: the number of threads that use it.
    `timeouts_s` are the longest waits for a connection and for the next bytes.
    """

    def __init__(
        self,
        name: str,
        config: GcsConfig,
        access: str,
        connections: int,
        timeouts_s: tuple[float, float] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    ) -> None:
        self.name = name
        self.timeouts_s = timeouts_s
        self._config = config
        self._access = access
        self._connections = connections
        self._lock = threading.Lock()
        # The mutable state of GcsClient is its link, made by the first request: making it looks
        # for credentials, which may ask a metadata service.
        self._link: _Link | None = None

    @property
    def sdk(self) -> Any:
        """The SDK's client. Raises `FusefsError` if there can be none."""
        return self._connected().client

    @property
    def bucket(self) -> Any:
        """The SDK's bucket; nothing is asked to make it. Raises like `sdk`."""
        return self._connected().bucket

    @property
    def where(self) -> str:
        """The subject of a sentence about the bucket itself."""
        return f"the bucket {self.name!r} at {self.sdk.api_endpoint}"

    def object(self, key: str) -> str:
        """The subject of a sentence about an object."""
        return f"the object {shown(key)} in bucket {self.name!r}"

    def send(
        self, method: str, path: str, query: dict[str, str], **arguments: Any
    ) -> requests.Response:
        """One request of our own, `path` from the endpoint on; the answer's body is not yet read.

        Raises `SDK_ERRORS`, of them `GoogleAPICallError` for every status but 2xx.
        """
        link = self._connected()
        if self._config.billing_project is not None:
            query = {**query, "userProject": self._config.billing_project}
        response: requests.Response = link.session.request(
            method,
            f"{link.client.api_endpoint.rstrip('/')}{path}?{urlencode(query)}",
            timeout=self.timeouts_s,
            stream=True,
            allow_redirects=False,
            **arguments,
        )
        if 200 <= response.status_code < 300:
            return response
        with response:
            raise from_http_response(response)

    def close(self) -> None:
        """Let go of all connections. Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.client.close()

    def _connected(self) -> _Link:
        if self._link is None:
            with self._lock:
                if self._link is None:
                    self._link = self._connect()
        return self._link

    def _connect(self) -> _Link:
        what = "the Google Cloud Storage client"
        endpoint = self._config.endpoint_url or os.environ.get(EMULATOR_VARIABLE) or None
        _check_endpoint(endpoint)
        anonymous = self._config.anonymous
        if anonymous is None:
            anonymous = self._config.endpoint_url is None and endpoint is not None
        try:
            credentials = _anonymous() if anonymous else _find_credentials(self._access)
            session = _make_session(credentials, self._connections, renew=not anonymous)
            client = google.cloud.storage.Client(
                project=None,  # no bucket's contents need one
                credentials=credentials,
                _http=session,
                client_info=ClientInfo(user_agent=_USER_AGENT),
                client_options={"api_endpoint": endpoint} if endpoint else None,
            )
        except GoogleAuthError as error:  # some of which are ValueErrors
            raise translate(error, what) from error
        except ValueError as error:
            raise ConfigError(
                f"{what} cannot be made: the credentials are of another universe than the endpoint"
            ) from error
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        bucket = client.bucket(self.name, user_project=self._config.billing_project)
        return _Link(session, client, bucket)


def shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 bytes if it has them."""
    text = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def meta_of(blob: Any, what: str) -> ObjectMeta:
    """The metadata of the SDK's `blob`. Raises `StoreUnavailable` if some is missing or is none."""
    try:
        # When this generation was made. `updated` also moves with labels, which are not bytes.
        generation, size, created = blob.generation, blob.size, blob.time_created
    except (TypeError, ValueError) as error:
        raise StoreUnavailable(f"{what} came with a value that makes no sense") from error
    if generation is None or size is None or created is None:
        raise StoreUnavailable(f"{what} came without a generation, size or time")
    mtime_ns = int(created.timestamp()) * 10**9 + created.microsecond * 1000
    return ObjectMeta(ObjectId(blob.name, str(generation)), size, mtime_ns)


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    wrong = "the Google endpoint is not a URL like https://host[:port]: check gcs.endpoint_url"
    wrong += f" or {EMULATOR_VARIABLE}"
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ConfigError(wrong) from error
    if not good:
        raise ConfigError(wrong)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the Google endpoint holds credentials: leave them to google-auth")


def _anonymous() -> Any:
    return AnonymousCredentials()


def _find_credentials(access: str) -> Any:
    """Google's application default credentials, for no more than is needed."""
    credentials, _ = google.auth.default(scopes=[SCOPE + access])
    return credentials


def _make_session(credentials: Any, connections: int, renew: bool) -> Any:
    """A session that shows `credentials` and, if they can be renewed, renews what is refused."""
    attempts: dict[str, int] = {} if renew else {"max_refresh_attempts": 0}
    session = AuthorizedSession(credentials, **attempts)
    session.headers["User-Agent"] = _USER_AGENT
    # With an authentication of its own, even one that does nothing, requests does not look into
    # ~/.netrc at every request, and does not put what it finds there in place of the token.
    session.auth = _leave
    adapter = HTTPAdapter(pool_connections=_HOSTS, pool_maxsize=connections, max_retries=0)
    # Again, with what cannot be said above: middleboxes forget idle connections after minutes.
    alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = [*HTTPConnection.default_socket_options, alive]
    adapter.init_poolmanager(_HOSTS, connections, socket_options=options)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


def _leave(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
