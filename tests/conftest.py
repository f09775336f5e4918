"""What every test gets: a real server, fresh buckets, and the rule that a warning fails a test."""

from __future__ import annotations

import itertools
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.harness.azurite import VARIABLES, Azurite, open_azurite
from tests.harness.fake_gcs import FakeGcs, open_fake_gcs
from tests.harness.moto import Moto, open_moto
from tests.harness.weed import Weed, open_weed

# Two busy cores make any example slow now and then: the bound on a test is pytest-timeout's.
# Derandomised: a run of the suite says the same thing twice; `--hypothesis-seed` explores.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


class _Collector(logging.Handler):
    """Keeps every record of level WARNING and up."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


class ExpectedWarnings:
    """The warnings a test announced. Each must come, and none besides."""

    def __init__(self) -> None:
        self.patterns: list[str] = []

    def __call__(self, pattern: str) -> None:
        """Announce log records of level WARNING and up whose text `pattern` (a regex) finds."""
        self.patterns.append(pattern)


@pytest.fixture
def expect_warning() -> ExpectedWarnings:
    """Call it with a regex to announce a warning of the logger `fusefs` in this test."""
    return ExpectedWarnings()


@pytest.fixture(autouse=True)
def warnings_fail(expect_warning: ExpectedWarnings) -> Iterator[None]:
    """Fail the test on a WARNING (or worse) of ours in the log that it did not announce."""
    collector = _Collector()
    loggers = [logging.getLogger("fusefs"), logging.getLogger("loaderhint")]
    for logger in loggers:
        logger.addHandler(collector)
    yield
    for logger in loggers:
        logger.removeHandler(collector)
    patterns = expect_warning.patterns
    unexpected = [m for m in collector.messages if not any(re.search(p, m) for p in patterns)]
    missing = [p for p in patterns if not any(re.search(p, m) for m in collector.messages)]
    if unexpected:
        pytest.fail("unexpected warnings in the log:\n" + "\n".join(unexpected))
    if missing:
        pytest.fail(f"announced warnings that never came: {missing}")


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One real S3 server for the whole session; tests keep apart by their buckets."""
    with open_weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def make_bucket(weed: Weed) -> Callable[[], str]:
    """Make an empty bucket with a name of its own and return the name."""
    numbers = itertools.count()
    client = weed.client()

    def make() -> str:
        name = f"bucket-{next(numbers)}"
        client.create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture
def bucket(make_bucket: Callable[[], str]) -> str:
    """An empty bucket on `weed` for this test alone."""
    return make_bucket()


@pytest.fixture
def weed_environment(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Weed:
    """`weed`, with this process's environment set so that an SDK finds it (and nothing else)."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return weed


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """One server that speaks Google's API for the whole session; tests keep apart by buckets."""
    with open_fake_gcs(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """One server with Amazon's versions, roles and policies for the whole session."""
    with open_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """One real Azure Blob server for the whole session; tests keep apart by their containers."""
    with open_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def gcs_bucket(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket on `fake_gcs` for this test alone, where the environment points the SDK."""
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    fake_gcs.make_bucket(bucket)
    return bucket


@pytest.fixture
def moto_environment(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    """`moto`, with this process's environment set so that an SDK finds it (and nothing else)."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return moto


@pytest.fixture
def azurite_environment(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """`azurite`, with this process's environment set so that the store finds it (and no other)."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    return azurite


@pytest.fixture
def container(azurite: Azurite) -> str:
    """An empty container on `azurite` for this test alone."""
    name = f"container-{uuid.uuid4().hex[:12]}"
    with azurite.client() as client:
        client.create_container(name)
    return name


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent
