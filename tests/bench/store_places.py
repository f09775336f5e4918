"""Where the bench of stores finds its models: one real server per kind of store, behind a link.

A place is filled past the link, since filling is not what is measured. A directory has no
connections; there each open file has the rate (`tests/harness/throttled.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.link import open_link
from tests.harness.azurite import open_azurite
from tests.harness.fake_gcs import open_fake_gcs
from tests.harness.redis_server import open_redis
from tests.harness.throttled import open_throttled
from tests.harness.weed import open_weed

BUCKET = "models"
LATENCY_MS = 2.0
"""Of the slow directory: a network file system's round trip."""
REDIS_OPTIONS = ("--save", "", "--maxmemory", "4gb")


@dataclass(frozen=True, slots=True)
class Place:
    """A store with room for a model, as it is read (through the link) and as it is filled."""

    name: str
    server: str
    source: str
    environment: Mapping[str, str]
    filled_as: str
    filled_with: Mapping[str, str]


@contextmanager
def _open_s3(directory: Path, rate_mb: int) -> Iterator[Place]:
    with open_weed(directory) as weed:
        weed.client().create_bucket(Bucket=BUCKET)
        with open_link(urlsplit(weed.endpoint).port or 0, rate_mb) as port:
            linked = {**weed.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
            source = f"s3://{BUCKET}/model"
            yield Place("s3", "SeaweedFS", source, linked, source, weed.environment)


@contextmanager
def _open_gcs(directory: Path, rate_mb: int) -> Iterator[Place]:
    with open_fake_gcs(directory) as server:
        server.make_bucket(BUCKET)
        with open_link(server.port, rate_mb) as port:
            linked = {**server.environment, "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
            source = f"gs://{BUCKET}/model"
            yield Place("gs", "fake-gcs-server", source, linked, source, server.environment)


@contextmanager
def _open_azure(directory: Path, rate_mb: int) -> Iterator[Place]:
    with open_azurite(directory) as server:
        server.client().create_container(BUCKET)
        plain = server.endpoint
        port = urlsplit(plain).port or 0
        with open_link(port, rate_mb) as through:
            linked = {
                name: value.replace(f":{port}/", f":{through}/")
                for name, value in server.environment.items()
            }
            source = f"az://{BUCKET}/model"
            yield Place("az", "Azurite", source, linked, source, server.environment)


@contextmanager
def _open_redis(directory: Path, rate_mb: int) -> Iterator[Place]:
    with (
        open_redis(directory, options=REDIS_OPTIONS) as server,
        open_link(server.port, rate_mb) as port,
    ):
        yield Place(
            "redis",
            "redis-server",
            f"redis://127.0.0.1:{port}?model=model",
            server.environment,
            f"{server.source}?model=model",
            server.environment,
        )


@contextmanager
def _open_file(directory: Path, rate_mb: int) -> Iterator[Place]:
    files, slow = directory / "files", directory / "slow"
    files.mkdir()
    slow.mkdir()
    with open_throttled(files, slow, rate_mb, LATENCY_MS) as throttled:
        yield Place("file", "FUSE directory", f"file://{throttled.path}", {}, f"file://{files}", {})


PLACES: dict[str, Callable[[Path, int], AbstractContextManager[Place]]] = {
    "s3": _open_s3,
    "gs": _open_gcs,
    "az": _open_azure,
    "redis": _open_redis,
    "file": _open_file,
}
"""By the scheme: opens the place in an empty folder, with MiB/s for each connection."""
