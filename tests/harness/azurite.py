"""A real Azure Blob server on 127.0.0.1: Azurite, Microsoft's own emulator (npm's `azurite`).

The one idea is that of `tests/harness/weed.py`: the server belongs to whoever opened it. Its port
is free and ours, all its files live in one folder, nothing is reported to anybody, and the kernel
ends it when its opener dies. `make test` installs it from `tests/azurite/package-lock.json`.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from tests.harness.weed import choose_ports

ACCOUNT = "fusefstest"
API_VERSION = "2025-11-05"
"""The newest that Azurite 3.35 knows; the SDK's own default runs ahead of it."""
READY_TIMEOUT_S = 60.0
"""Starting takes 1-2 s on two idle cores; the rest is for a machine with other work."""
READY_POLL_S = 0.1
"""How long to wait between two looks at a server that is starting."""
START_TRIES = 3
"""Another process may take the port between our look and the server's bind: choose anew."""

_MAIN = Path(__file__).parents[1] / "azurite/node_modules/azurite/dist/src/blob/main.js"

VARIABLES = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
"""All that the store reads of the environment, for tests to clear."""


class AzuriteFailed(Exception):
    """The server is missing, ended, or did not become ready; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Azurite:
    """A running server: where it answers and whom it answers to."""

    endpoint: str
    directory: Path
    pid: int
    key: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server and see no other account."""
        return {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={self.key};"
                f"BlobEndpoint={self.endpoint};"
            ),
        }

    def client(self) -> BlobServiceClient:
        """Return the SDK's own client."""
        named = {"account_name": ACCOUNT, "account_key": self.key}
        return BlobServiceClient(
            self.endpoint, credential=named, api_version=API_VERSION, retry_total=0
        )

    def sas(self, container: str, permission: str, hours: float = 1.0) -> str:
        """Return a SAS of one container for as long as said (less than 0: it has expired)."""
        return generate_container_sas(
            ACCOUNT,
            container,
            account_key=self.key,
            permission=ContainerSasPermissions.from_string(permission),
            expiry=datetime.now(UTC) + timedelta(hours=hours),
        )

    def log(self) -> str:
        """Return what the server has written so far."""
        return (self.directory / "azurite.log").read_text(errors="replace")


@contextmanager
def open_azurite(directory: Path) -> Iterator[Azurite]:
    """Run a server with its files in `directory` (made if missing, the caller's to remove).

    Yields once it lists containers. Raises `AzuriteFailed`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    process, azurite = _start(directory)
    try:
        yield azurite
    finally:
        process.kill()
        process.wait()


def _start(directory: Path) -> tuple[subprocess.Popen[bytes], Azurite]:
    """Start the server; on a port that turns out to be taken, again on another."""
    for attempt in range(1, START_TRIES + 1):
        (port,) = choose_ports(1)
        key = base64.b64encode(secrets.token_bytes(64)).decode()
        process = _spawn(directory, port, key)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        azurite = Azurite(endpoint, directory, process.pid, key)
        try:
            _wait_ready(process, azurite)
        except BaseException as error:
            process.kill()
            process.wait()
            taken = isinstance(error, AzuriteFailed) and "EADDRINUSE" in azurite.log()
            if attempt == START_TRIES or not taken:
                raise
        else:
            return process, azurite
    raise AssertionError("unreachable: the last attempt returned or raised")


def _spawn(directory: Path, port: int, key: str) -> subprocess.Popen[bytes]:
    if not _MAIN.exists():
        raise AzuriteFailed(f"there is no {_MAIN}: make .venv/.made-test installs it")
    command = [
        # The kernel kills it with us, also when we are killed ourselves.
        *("setpriv", "--pdeathsig", "KILL", "--", "node", str(_MAIN)),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory)),
        *("--disableTelemetry", "--silent"),
    ]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),
        "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}",
    }
    with (directory / "azurite.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the opener, who then stops the server in order.
            start_new_session=True,
        )


def _wait_ready(process: subprocess.Popen[bytes], azurite: Azurite) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with azurite.client() as client:
        while True:
            if process.poll() is not None:
                said = azurite.log()[-2000:]
                raise AzuriteFailed(f"azurite ended with {process.returncode}: {said}")
            try:
                list(client.list_containers())
            except AzureError as error:
                if time.monotonic() > deadline:
                    raise AzuriteFailed(
                        f"azurite is not ready after {READY_TIMEOUT_S:.0f} s ({error}):"
                        f" {azurite.log()[-2000:]}"
                    ) from error
                time.sleep(READY_POLL_S)
            else:
                return
