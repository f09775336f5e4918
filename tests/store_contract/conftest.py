"""The fixtures `subject`, each kind of store in turn on a bucket of its own, and `server`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.config import GcsConfig
from fusefs.store.gcs import GcsStore
from fusefs.store.s3 import S3Store
from tests.harness.azurite import Azurite
from tests.harness.fake_gcs import FakeGcs
from tests.harness.google_manners import GoogleManners, open_google_manners
from tests.harness.moto import Moto
from tests.harness.redis_server import RedisServer, open_redis, open_redis_cluster
from tests.harness.weed import Weed
from tests.store_contract.gcs_subject import GcsSubject
from tests.store_contract.redis_place import Opened
from tests.store_contract.subjects import (
    AzureSubject,
    PosixSubject,
    RedisSubject,
    S3Subject,
    SimulatedSubject,
    Subject,
)
from tests.store_contract.wire import WireServer, open_wire

SUBJECTS = ("s3", "s3-versions", "gcs", "azure", "posix", "redis", "redis-cluster", "simulated")


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """One store under test. Only the one that needs a server starts it."""
    if request.param == "s3":
        server: Weed = request.getfixturevalue("weed_environment")
        s3 = S3Subject(server, request.getfixturevalue("bucket"))
        yield s3
        s3.close()
    elif request.param == "gcs":
        yield request.getfixturevalue("gcs")
    elif request.param == "s3-versions":
        moto: Moto = request.getfixturevalue("moto_environment")
        versions = S3Subject(moto, request.getfixturevalue("versioned_bucket"))
        yield versions
        versions.close()
    elif request.param == "azure":
        azurite: Azurite = request.getfixturevalue("azurite_environment")
        azure = AzureSubject(azurite, request.getfixturevalue("container"))
        yield azure
        azure.close()
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
def google(fake_gcs: FakeGcs) -> Iterator[GoogleManners]:
    """`fake_gcs` with Google's manners."""
    with open_google_manners(fake_gcs) as manners:
        yield manners


@pytest.fixture
def gcs(google: GoogleManners, gcs_bucket: str) -> Iterator[GcsSubject]:
    """A bucket of its own there, as store and writer see it."""
    made = GcsSubject(google, gcs_bucket)
    yield made
    made.close()


@pytest.fixture
def google_wire() -> Iterator[WireServer]:
    """A server that says what it is told."""
    with open_wire() as running:
        yield running


@pytest.fixture
def google_store(google_wire: WireServer) -> Iterator[GcsStore]:
    """A store on that server that gives up soon: tests wait for it."""
    made = GcsStore(
        "bucket",
        GcsConfig(endpoint_url=f"http://127.0.0.1:{google_wire.port}", anonymous=True),
        connections=2,
        connect_timeout_s=5.0,
        # A loopback answers in 1 ms, and a busy machine in 100.
        read_timeout_s=0.5,
    )
    yield made
    made.close()


@pytest.fixture
def versioned_bucket(moto: Moto) -> str:
    """An empty bucket on `moto` that keeps every version."""
    name = f"bucket-{uuid.uuid4().hex}"
    client = moto.client()
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    client.close()
    return name


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


@pytest.fixture
def endpoint(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> WireServer:
    """The wire server as the one that the environment names, for S3 and for roles."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    return server


@pytest.fixture
def stores() -> Iterator[list[S3Store]]:
    """What a test opens, to be closed after it."""
    opened: list[S3Store] = []
    yield opened
    for store in opened:
        store.close()
