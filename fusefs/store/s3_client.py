"""The client that the S3 adapter asks: made on first use, renewed when its credentials ran out.

boto3 and botocore, the client inside it, sign, find credentials and regions, and keep connections.
They are told not to retry, since the fetcher does. The SDK renews what expires by its own clock:
roles, web identities, credential processes. The one idea here: what somebody writes anew into
~/.aws/credentials it does not see, so when the store calls credentials expired, the chain is walked
again, and if it ends in others, the request is made once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore
import botocore.loaders
import botocore.session
import botocore.utils
from botocore import UNSIGNED
from botocore.config import Config as SdkConfig
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

import fusefs
from fusefs.config import S3Config
from fusefs.errors import ConfigError
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.store.s3_errors import code_of, translate

CONNECT_TIMEOUT_S = 5.0
"""Linux repeats a lost SYN after 1 s and 3 s: two may be lost, and a dead address costs no more."""

READ_TIMEOUT_S = 20.0
"""Silence, not duration: the longest wait for the next bytes. S3's slowest first bytes take a few
seconds; 20 s leaves time for six tries within the default `read_deadline_s` of 120 s."""

RENEW_EVERY_S = 10.0
"""Looking for other credentials costs up to 0.1 s and may ask a service: not for every request that
fails, though well within the time a person takes to look whether it works now."""

_RENEWABLE = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired", "400"}
)
"""Codes of credentials that once were good; 400 is all that a HEAD hears of it."""

_loader = botocore.loaders.Loader()
"""Caches botocore's JSON models: 11 MB, the same for every session, shared by forked workers."""

_client_lock = threading.Lock()
"""Making a client is not thread-safe in botocore (its models are parsed in place)."""


class S3Client:
    """A client of botocore that lasts as long as the mount. Thread-safe.

    `connections` is how many idle connections are kept: the number of threads that use it.
    """

    def __init__(
        self,
        config: S3Config,
        connections: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._connections = connections
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        # The mutable state of S3Client is the client, made by the first request, since making it
        # looks for credentials, which may ask a metadata service; and when others were looked for.
        # INVARIANT: all change under `_client_lock` only.
        self._client: Any = None
        self._credentials: Any = None
        self._renewed_s = float("-inf")

    def endpoint(self) -> str:
        """The server's URL. Raises like `call`, but only `FusefsError`."""
        url: str = self._connected().meta.endpoint_url
        return url

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises anything of `s3_errors.SDK_ERRORS`, or `FusefsError`."""
        client = self._connected()
        with _renewals_told():
            try:
                return _call(client, operation, arguments)
            except ClientError as error:
                if code_of(error) not in _RENEWABLE:
                    raise
                other = self._renew(client)
                if other is None:
                    raise
            return _call(other, operation, arguments)

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        with _client_lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> Any:
        client = self._client
        if client is None:
            with _client_lock:
                if self._client is None:
                    self._client, self._credentials = self._make()
                client = self._client
        return client

    def _renew(self, client: Any) -> Any:
        """A client with other credentials than `client` has, or None."""
        with _client_lock:
            if self._client is not client:
                return self._client  # another thread was here
            now_s = time.monotonic()
            if now_s - self._renewed_s < RENEW_EVERY_S:
                return None
            self._renewed_s = now_s
            other, credentials = self._make()
            if _values(credentials) == _values(self._credentials):
                return None
            # The old one is not closed: other threads are receiving through it.
            self._client, self._credentials = other, credentials
            return other

    def _make(self) -> tuple[Any, Any]:
        return make_client(self._config, self._connections, *self._timeouts_s)


def load_models() -> None:
    """Load the models that every client of this process, and of its forks, then shares.

    These are the calls that making a client makes, with the same arguments, since the loader caches
    by those. No client is made: that would look for credentials.
    """
    for name in ("service-2", "endpoint-rule-set-1"):
        _loader.load_service_model("s3", name, api_version=None)
    for name in ("sdk-default-configuration", "partitions"):
        _loader.load_data(name)
    _loader.load_data_with_path("endpoints")


def make_client(
    config: S3Config, connections: int, connect_timeout_s: float, read_timeout_s: float
) -> tuple[Any, Any]:
    """A client of botocore as the settings want it, and its credentials. Raises `FusefsError`."""
    # Without a wish, botocore takes path style for every endpoint but Amazon's own, since a server
    # on a plain host has no DNS names for its buckets; ~/.aws/config may say otherwise.
    style = {None: None, True: "path", False: "virtual"}[config.path_style]
    sdk_config = SdkConfig(
        # Said in full: botocore's own takes 0.1 of the 0.85 ms of CPU that a request costs.
        user_agent=f"fusefs/{fusefs.__version__} botocore/{botocore.__version__}",
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=connections,
        # Middleboxes forget idle connections: AWS NAT gateways after 350 s, others sooner.
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # S3's checksums cover whole objects, and a range cannot be checked against one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style} if style else None,
        # Then no credentials are looked for, either.
        signature_version=UNSIGNED if config.anonymous else None,
    )
    try:
        session = _make_session(config.profile)
        client = session.client(
            "s3",
            region_name=config.region,
            endpoint_url=config.endpoint_url,
            config=sdk_config,
        )
        endpoint = urlsplit(client.meta.endpoint_url)
        credentials = None if config.anonymous else session.get_credentials()
    except (BotoCoreError, ClientError, OSError) as error:
        raise translate(error, "the S3 client") from error
    except ValueError as error:
        raise ConfigError("the S3 endpoint is not a URL like https://host[:port]") from error
    if endpoint.username is not None or endpoint.password is not None:
        raise ConfigError("the S3 endpoint holds credentials: leave them to the AWS environment")
    if config.requester_pays:
        client.meta.events.register("before-call.s3", _agree_to_pay)
    return client, credentials


def object_meta(key: str, etag: str, size: int, modified: datetime) -> ObjectMeta:
    """The metadata of an object, from what listings and HEADs tell."""
    # Whole seconds: a HEAD tells no more, and the two must agree.
    return ObjectMeta(ObjectId(key, etag.strip('"')), size, int(modified.timestamp()) * 10**9)


def _call(client: Any, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = getattr(client, operation)(**arguments)
    return answer


@contextmanager
def _renewals_told() -> Iterator[None]:
    """Give a name to what botocore says when renewed credentials have expired, too."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise CredentialRetrievalError(provider="renewal", error_msg="expired") from error


def _values(credentials: Any) -> object:
    """What a client signs with now, comparable."""
    return credentials and tuple(credentials.get_frozen_credentials())


def _make_session(profile: str | None) -> Any:
    core = botocore.session.Session(profile=profile)
    core.register_component("data_loader", _loader)
    parsers = core.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_timestamp)
    return boto3.session.Session(botocore_session=core)


def _agree_to_pay(params: dict[str, Any], **_: Any) -> None:
    """Before a request is signed: the header that a requester-pays bucket wants with every one."""
    params["headers"]["x-amz-request-payer"] = "requester"


def _parse_timestamp(text: Any) -> datetime:
    """A datetime from what S3 writes; anything else goes botocore's way.

    Listings write ISO 8601 and headers RFC 9110: 0.5 and 5 us here, 32 and 45 us in dateutil, which
    botocore uses, for each object of a page and for each GetObject.
    """
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(AttributeError, TypeError, ValueError):
            moment = parse(text)
            if moment.tzinfo is not None:
                return moment
    parsed: datetime = botocore.utils.parse_timestamp(text)
    return parsed
