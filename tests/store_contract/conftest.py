"""The fixtures `subject`, each kind of store in turn on a bucket of its own, and `server`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer, open_redis, open_redis_cluster
from tests.harness.weed import Weed
from tests.store_contract.redis_place import Opened
from tests.store_contract.subjects import (
    PosixSubject,
    RedisSubject,
    S3Subject,
    SimulatedSubject,
    Subject,
)
from tests.store_contract.wire import WireServer, open_wire


@pytest.fixture(params=["s3", "posix", "redis", "redis-cluster", "simulated"])
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
    elif request.param.startswith("redis"):
        redis = RedisSubject(request.getfixturevalue(request.param.replace("-", "_") + "_server"))
        yield redis
        redis.close()
    else:
        yield SimulatedSubject()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the whole session; each test that uses it begins by emptying it."""
    with open_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="session")
def redis_cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A cluster of three, likewise."""
    with open_redis_cluster(tmp_path_factory.mktemp("redis-cluster")) as running:
        yield running


@pytest.fixture(params=["redis", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> RedisServer:
    """An empty server, then an empty cluster."""
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def opened(redis: RedisServer) -> Iterator[Opened]:
    """What opens stores and writers there."""
    one = Opened(redis)
    yield one
    one.close()


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
