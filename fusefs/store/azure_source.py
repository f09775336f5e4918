"""Where a container of Azure Blob is: accounts, hosts and connection strings, without the SDK.

The one idea: an account may be said in the SOURCE, in the settings or in the environment, and all
of that is settled here, so that the adapter is handed one URL. Reads `AZURE_STORAGE_ACCOUNT` and
`AZURE_STORAGE_CONNECTION_STRING`; no message repeats the latter, since it holds a key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from fusefs.config import AzureConfig
from fusefs.errors import ConfigError
from fusefs.store.base import Source

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "AZURE_STORAGE_ACCOUNT"

_CLOUD = "core.windows.net"
"""Azure's public cloud; others are named by a host, azure.endpoint_url or EndpointSuffix."""

_CONTAINER = re.compile(r"\$(?:root|web|logs)|(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*")
"""https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata"""

_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Azure's are 3-24 letters and digits; "-secondary" behind one is its copy, and emulators are
freer."""

_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")

_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::\d+)?(?:/[\w./-]*)?", re.ASCII)

_DEVELOPMENT = {
    "ACCOUNTNAME": "devstoreaccount1",
    "ACCOUNTKEY": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/"
    "K1SZFPTOtr/KBHBeksoGMGw==",
    "BLOBENDPOINT": "http://127.0.0.1:10000/devstoreaccount1",
}
"""What UseDevelopmentStorage=true stands for: published, the same for everybody."""


def split_azure(rest: str, config: AzureConfig) -> tuple[str, str, str]:
    """Server, container and prefix (as typed) of an az SOURCE without its scheme.

    A first segment with a dot is a host. If an account is known, the first segment is the
    container, unless it is that account's name; if none is known, it is the account. Raises
    `ConfigError`.
    """
    first, _, behind = rest.partition("/")
    if "@" in first or ":" in first or ("?" in rest and "sig=" in rest):
        raise ConfigError(
            "an az SOURCE holds no credentials and no port: type az://container/prefix, and leave"
            " keys to AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, the server to"
            " azure.endpoint_url"
        )
    if not first:
        raise ConfigError("the az SOURCE names no container: type az://container/prefix")
    if "." in first:
        server = first.lower()
        if not _HOST.fullmatch(server):
            raise ConfigError(f"{first!r} is not the host of a storage account")
    else:
        known = known_account(config)
        if known is not None and first != known:
            return known, _container(first), behind
        server = first
        if not _ACCOUNT.fullmatch(server):
            raise ConfigError(f"{first!r} is not the name of a storage account")
        if not behind and known is None:
            raise ConfigError(
                "the az SOURCE names an account or a container, not both: type"
                f" az://ACCOUNT/{first}, or set azure.account"
            )
    container, _, prefix = behind.partition("/")
    if not container:
        raise ConfigError(
            f"the az SOURCE names no container: type az://{server}/container or"
            f" az://{server}/container/prefix"
        )
    return server, _container(container), prefix


def known_account(config: AzureConfig) -> str | None:
    """The account that the settings or the environment name, or None. Raises `ConfigError`."""
    if config.account:
        return config.account
    if config.endpoint_url:
        return account_of(config.endpoint_url)
    return os.environ.get(ACCOUNT) or account_in(connection_string())


def connection_string() -> Mapping[str, str]:
    """The parts of the connection string in the environment by upper-case names; {} without one.

    Raises `ConfigError` if it is none.
    """
    text = os.environ.get(CONNECTION_STRING, "").strip().strip(";")
    if not text:
        return {}
    pairs = [part.partition("=") for part in text.split(";")]
    parts = {name.strip().upper(): value for name, separator, value in pairs if separator}
    if len(parts) != len(pairs):
        raise ConfigError(f"{CONNECTION_STRING} is not a list of NAME=VALUE with ';' between them")
    if parts.get("USEDEVELOPMENTSTORAGE", "").lower() == "true":
        return _DEVELOPMENT
    return parts


def account_in(parts: Mapping[str, str]) -> str | None:
    """The account that a connection string is for, if it says so."""
    name = parts.get("ACCOUNTNAME")
    return name or (account_of(parts["BLOBENDPOINT"]) if "BLOBENDPOINT" in parts else None)


def account_of(url: str) -> str | None:
    """The account that a server's URL names: in the host or, of emulators, in the path."""
    try:
        path, host = urlsplit(url).path.strip("/"), urlsplit(url).hostname or ""
    except ValueError:
        return None  # no URL at all: whoever uses it says so
    name = path.partition("/")[0] if path else host.partition(".")[0] if ".blob." in host else ""
    return name.removesuffix("-secondary") or None


def endpoint_of(source: Source, config: AzureConfig) -> str:
    """The URL below which the containers of a source's account are. Raises `ConfigError`."""
    if config.endpoint_url:
        host = urlsplit(config.endpoint_url).hostname
        if "." in source.server and host != source.server:
            raise ConfigError(
                f"the SOURCE is at {source.server}, azure.endpoint_url at another host: leave one"
                " of them out"
            )
        return config.endpoint_url.rstrip("/")
    if "." in source.server:
        return f"https://{source.server}"
    parts = connection_string()
    if account_in(parts) != source.server:
        return f"https://{source.server}.blob.{_CLOUD}"
    endpoint = parts.get("BLOBENDPOINT") or (
        f"{parts.get('DEFAULTENDPOINTSPROTOCOL', 'https')}://{source.server}.blob."
        f"{parts.get('ENDPOINTSUFFIX', _CLOUD)}"
    )
    if not _URL.fullmatch(endpoint):
        raise ConfigError(f"the BlobEndpoint of {CONNECTION_STRING} is not a URL like https://host")
    return endpoint.rstrip("/")


def _container(name: str) -> str:
    if not _CONTAINER.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a container name: 3 to 63 lower-case letters, digits and single '-'"
        )
    return name
