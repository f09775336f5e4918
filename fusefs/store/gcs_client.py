"""One bucket at Google as the SDK reaches it: credentials, endpoint, requests.

Shared by the store and the writer. google-auth finds and renews the credentials, Google's SDK knows
the endpoints and how names are written in them. Its own requests are not used: with the first of
them it starts a thread that asks for the bucket's metadata, which takes a permission that reading
does not need. The one idea: every request goes through one session that keeps a connection for each
thread, and nothing below it retries.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import google.auth
import google.cloud.storage
import requests
from google.api_core.exceptions import from_http_response
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Blob, Bucket
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

import fusefs
from fusefs.config import GcsConfig
from fusefs.errors import ConfigError, CorruptData, StoreUnavailable
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.store.gcs_errors import SDK_ERRORS, translate
from fusefs.store.http_errors import SENSELESS

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
class Page:
    """A page of a listing: objects as JSON, common prefixes, the token of the next page."""

    items: tuple[Any, ...]
    prefixes: tuple[str, ...]
    token: str | None


@dataclass(frozen=True, slots=True)
class _Link:
    """What exists once somebody has asked for something."""

    session: Any
    endpoint: str


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
        self._timeouts_s = timeouts_s
        self._config = config
        self._access = access
        self._connections = connections
        self._lock = threading.Lock()
        # The mutable state of GcsClient is its link, made by the first request: making it looks
        # for credentials, which may ask a metadata service.
        self._link: _Link | None = None

    @property
    def where(self) -> str:
        """The subject of a sentence about the bucket itself. Raises `FusefsError` if it cannot."""
        return f"the bucket {self.name!r} at {self._connected().endpoint}"

    def object(self, key: str) -> str:
        """The subject of a sentence about an object."""
        return f"the object {shown(key)} in bucket {self.name!r}"

    def path(self, key: str | None = None) -> str:
        """Where an object, or all of them, are found below an endpoint's `/storage/v1`."""
        bucket = Bucket.path_helper(self.name)
        return f"{bucket}/o" if key is None else Blob.path_helper(bucket, key)

    def send(
        self, method: str, path: str, query: Mapping[str, str], **arguments: Any
    ) -> requests.Response:
        """One request, `path` from the endpoint on; the answer's body is not yet read.

        Raises `SDK_ERRORS`, of them `GoogleAPICallError` for every status but 2xx.
        """
        link = self._connected()
        if self._config.billing_project is not None:
            query = {**query, "userProject": self._config.billing_project}
        response: requests.Response = link.session.request(
            method,
            f"{link.endpoint}{path}?{urlencode(query)}",
            timeout=self._timeouts_s,
            stream=True,
            allow_redirects=False,
            **arguments,
        )
        if 200 <= response.status_code < 300:
            return response
        with response:
            raise from_http_response(response)

    def ask(self, method: str, path: str, query: Mapping[str, str], **arguments: Any) -> Any:
        """One request that is answered in JSON. Raises like `send`."""
        with self.send(method, path, query, **arguments) as response:
            return response.json()

    def list_page(self, what: str, token: str | None, query: Mapping[str, str]) -> Page:
        """One request: a page of a listing; `what` is the subject of an error's sentence."""
        if token is not None:
            query = {**query, "pageToken": token}
        try:
            answer = self.ask("GET", f"/storage/v1{self.path()}", query)
            items, prefixes = answer.get("items", ()), answer.get("prefixes", ())
            page = Page(tuple(items), tuple(prefixes), answer.get("nextPageToken") or None)
            _texts(*page.prefixes, page.token or "")
        except SDK_ERRORS as error:
            raise translate(error, what) from error
        except (AttributeError, TypeError) as error:
            raise StoreUnavailable(f"{what} did not come: the answer is not Google's") from error
        if page.token is not None and page.token == token:
            raise CorruptData(f"{what} does not go on: the next page is this one")
        return page

    def close(self) -> None:
        """Let go of all connections. Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.session.close()

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
            credentials = AnonymousCredentials() if anonymous else _find_credentials(self._access)
            client = google.cloud.storage.Client(
                project=None,  # no bucket's contents need one
                credentials=credentials,
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
        session = _make_session(credentials, self._connections, renew=not anonymous)
        return _Link(session, client.api_endpoint.rstrip("/"))


def shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 bytes if it has them."""
    text = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def meta_of(resource: Any, what: str) -> ObjectMeta:
    """The metadata of an object in JSON. Raises `StoreUnavailable` if some is missing or is none.

    The time is when this generation was made: `updated` also moves with labels, which are no bytes.
    """
    try:
        created = datetime.fromisoformat(resource["timeCreated"])
        mtime_ns = int(created.timestamp()) * 10**9 + created.microsecond * 1000
        (name,) = _texts(resource["name"])
        id = ObjectId(name, str(int(resource["generation"])))
        return ObjectMeta(id, int(resource["size"]), mtime_ns)
    except (KeyError, TypeError, *SENSELESS) as error:
        raise StoreUnavailable(f"{what} came without a name, generation, size or time") from error


def _texts(*values: Any) -> tuple[str, ...]:
    """What JSON says, if it is texts. Raises TypeError."""
    if not all(isinstance(value, str) for value in values):
        raise TypeError("there is a value that is no text")
    return values


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
