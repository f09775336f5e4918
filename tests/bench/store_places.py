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

from tests.bench.link import Link
from tests.harness.azurite import open_azurite
from tests.harness.fake_gcs import open_fake_gcs
from tests.harness.redis_server import open_redis
from tests.harness.throttled import open_throttled
from tests.harness.weed import open_weed

BUCKET = "models"
LATENCY_MS = 2.0
"""Of the slow directory: a network file system's round trip."""
REDIS_OPTIONS = ("--save", "", "--maxmemory", "4gb", "--protected-mode", "no")

Fill = Callable[[str, Mapping[str, str]], None]
"""Puts the model at a SOURCE, in an environment."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """MiB/s of one stream and of all together, and the network that has them."""

    rate_mb: int
    total_mb: int
    link: Link


@dataclass(frozen=True, slots=True)
class Place:
    """A store with a model, as its readers see it."""

    name: str
    server: str
    source: str
    environment: Mapping[str, str]


@contextmanager
def _open_s3(directory: Path, bounds: Bounds, fill: Fill) -> Iterator[Place]:
    source = f"s3://{BUCKET}/model"
    with open_weed(directory) as weed:
        weed.client().create_bucket(Bucket=BUCKET)
        fill(source, weed.environment)
        with bounds.link.forward(urlsplit(weed.endpoint).port or 0) as port:
            endpoint = {"AWS_ENDPOINT_URL": f"http://{bounds.link.host}:{port}"}
            yield Place("s3", "SeaweedFS", source, {**weed.environment, **endpoint})


@contextmanager
def _open_gcs(directory: Path, bounds: Bounds, fill: Fill) -> Iterator[Place]:
    source = f"gs://{BUCKET}/model"
    with open_fake_gcs(directory) as server:
        server.make_bucket(BUCKET)
        fill(source, server.environment)
        with bounds.link.forward(server.port) as port:
            endpoint = {"STORAGE_EMULATOR_HOST": f"http://{bounds.link.host}:{port}"}
            yield Place("gs", "fake-gcs-server", source, endpoint)


@contextmanager
def _open_azure(directory: Path, bounds: Bounds, fill: Fill) -> Iterator[Place]:
    source = f"az://{BUCKET}/model"
    with open_azurite(directory) as server:
        server.client().create_container(BUCKET)
        fill(source, server.environment)
        port = urlsplit(server.endpoint).port or 0
        with bounds.link.forward(port) as forwarded:
            here, there = f"127.0.0.1:{port}/", f"{bounds.link.host}:{forwarded}/"
            linked = {
                name: value.replace(here, there) for name, value in server.environment.items()
            }
            yield Place("az", "Azurite", source, linked)


@contextmanager
def _open_redis(directory: Path, bounds: Bounds, fill: Fill) -> Iterator[Place]:
    with open_redis(directory, options=REDIS_OPTIONS) as server:
        fill(f"{server.source}?model=model", server.environment)
        with bounds.link.forward(server.port) as port:
            source = f"redis://{bounds.link.host}:{port}?model=model"
            yield Place("redis", "redis-server", source, server.environment)


@contextmanager
def _open_file(directory: Path, bounds: Bounds, fill: Fill) -> Iterator[Place]:
    files, slow = directory / "files", directory / "slow"
    files.mkdir()
    slow.mkdir()
    fill(f"file://{files}", {})
    with open_throttled(
        files, slow, bounds.rate_mb, LATENCY_MS, total_mb=bounds.total_mb
    ) as throttled:
        yield Place("file", "slow FUSE directory", f"file://{throttled.path}", {})


PLACES: dict[str, Callable[[Path, Bounds, Fill], AbstractContextManager[Place]]] = {
    "s3": _open_s3,
    "gs": _open_gcs,
    "az": _open_azure,
    "redis": _open_redis,
    "file": _open_file,
}
"""By the scheme: opens the place in an empty folder, fills it, and shows it through the link."""
