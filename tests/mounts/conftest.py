"""What the mount tests share: a bucket with awkward names, a big file, a small sharded model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.model import make_model
from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed

BIG_BYTES = 40 * (1 << 20) + 12_345


@dataclass(frozen=True, slots=True)
class Twins:
    """The same bytes twice: on a mount and in a plain directory."""

    mounted: Mounted
    plain: Path


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loadable model of 3 shards and about 36 MB."""
    directory = tmp_path_factory.mktemp("model")
    make_model(directory, shards=3, shard_bytes=12 << 20)
    return directory


@pytest.fixture(scope="session")
def upload(weed: Weed, make_bucket: Callable[[], str]) -> Callable[[Path], str]:
    """Upload a directory into a bucket of its own; returns the bucket's name."""

    def put(directory: Path) -> str:
        bucket = make_bucket()
        client = weed.client()
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                client.upload_file(str(file), bucket, str(file.relative_to(directory)))
        return bucket

    return put


@pytest.fixture(scope="session")
def model_bucket(model_directory: Path, upload: Callable[[Path], str]) -> str:
    """That model in a bucket."""
    return upload(model_directory)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain directory: one big file, edge sizes, a sub-directory."""
    directory = tmp_path_factory.mktemp("plain")
    noise = random.Random(7)
    (directory / "sub" / "deep").mkdir(parents=True)
    for name, size in (
        ("big.bin", BIG_BYTES),
        ("empty", 0),
        ("one", 1),
        ("page", 4096),
        ("block", 1 << 20),
        ("block+1", (1 << 20) + 1),
        ("sub/a.json", 100),
        ("sub/deep/b.safetensors", 9 << 20),
    ):
        (directory / name).write_bytes(noise.randbytes(size))
    return directory


@pytest.fixture(scope="session")
def plain_bucket(plain: Path, upload: Callable[[Path], str]) -> str:
    """The plain directory in a bucket."""
    return upload(plain)


@pytest.fixture(scope="module", params=["s3", "file"])
def twins(
    request: pytest.FixtureRequest, weed: Weed, plain: Path, plain_bucket: str
) -> Iterator[Twins]:
    """The plain directory, mounted from a bucket and from a directory.

    The arena is small, so that blocks are evicted all the time.
    """
    source = f"s3://{plain_bucket}" if request.param == "s3" else f"file://{plain}"
    with open_mount(source, "--memory", "24M", environment=weed.environment) as mounted:
        yield Twins(mounted, plain)
