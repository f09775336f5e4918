"""The fixtures `subject` and `writable`, each kind of store in turn, and `server`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.weed import Weed
from tests.store_contract.subjects import (
    PosixSubject,
    S3Subject,
    SimulatedSubject,
    Subject,
    WritableSubject,
)
from tests.store_contract.wire import WireServer, open_wire


@pytest.fixture(params=["s3", "posix", "simulated"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """One store under test. Only the one that needs a server starts it."""
    if request.param == "s3":
        server: Weed = request.getfixturevalue("weed_environment")
        s3 = S3Subject(server, request.getfixturevalue("bucket"))
        yield s3
        s3.close()
    elif request.param == "posix":
        tmp_path: Path = request.getfixturevalue("tmp_path")
        directory = tmp_path / "source"
        directory.mkdir()
        yield PosixSubject(directory)
    else:
        yield SimulatedSubject()


@pytest.fixture(params=["posix", "simulated"])
def writable(request: pytest.FixtureRequest) -> WritableSubject:
    """One store that can be written to, under test."""
    if request.param == "posix":
        tmp_path: Path = request.getfixturevalue("tmp_path")
        directory = tmp_path / "destination"
        directory.mkdir()
        return PosixSubject(directory)
    return SimulatedSubject()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    """A server, and an environment in which the SDK has credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with open_wire() as running:
        yield running
