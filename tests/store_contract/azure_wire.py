"""A store of Azure Blob on the server of `tests/store_contract/wire.py`, and errors as Azure's."""

from __future__ import annotations

from fusefs.config import AzureConfig, Config
from fusefs.store.azure import AzureStore
from fusefs.store.azure_client import AzureClient
from fusefs.store.source import parse_source
from tests.store_contract.wire import Answer
from tests.store_contract.wire import error as plain_error

READ_TIMEOUT_S = 0.5
"""Short, since tests wait for it; a loopback answers in 1 ms, and a busy machine in 100."""


def error(status: str, code: str, **headers: str) -> Answer:
    """An error as Azure spells it: the code is in a header, too."""
    return plain_error(status, code, "keep", x_ms_error_code=code, **headers)


def make_store(endpoint: str, connections: int = 2, anonymous: bool = False) -> AzureStore:
    """A store of the container `bucket` on that server that gives up soon."""
    config = AzureConfig(account="acct", endpoint_url=endpoint, anonymous=anonymous)
    source = parse_source("az://bucket", Config(azure=config))
    return AzureStore(AzureClient(source, config, connections, 5.0, READ_TIMEOUT_S))
