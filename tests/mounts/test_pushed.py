"""A folder that was pushed, seen through a mount, and pulled again: the same bytes and names."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.azurite import Azurite
from tests.harness.fake_gcs import FakeGcs
from tests.harness.mounted import open_mount, run_cli
from tests.harness.redis_server import open_redis
from tests.harness.weed import Weed
from tests.transfer.folders import contents, fill

CONFIG = '{"model_type": "llama"}'
FILES = {
    "model-00001-of-00002.safetensors": (8 << 20) + 13,
    "model-00002-of-00002.safetensors": 5_000_000,
    "model.safetensors.index.json": 400,
    "tokenizer/ünï code+ %2F.txt": 70_000,
    "日本語/deep/er/a b": 1,
    "empty": 0,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with awkward names."""
    folder = fill(tmp_path / "model", FILES)
    (folder / "config.json").write_text(CONFIG)
    return folder


def test_a_pushed_folder_is_what_a_mount_shows(model: Path, tmp_path: Path) -> None:
    """Pushed, mounted, and pulled from there: byte-identical, and nothing of ours is seen."""
    place = tmp_path / "place"
    place.mkdir()
    with open_mount(f"file://{place}", "--set", "tree.ttl_s=0") as mounted:
        assert list(mounted.path.iterdir()) == []
        pushed = mounted.run_cli("push", str(model), f"file://{place}")
        assert pushed.returncode == 0, pushed.stderr
    with open_mount(f"file://{place}") as mounted:
        assert contents(mounted.path) == contents(model)
        names = {path.name for path in mounted.path.rglob("*")}
        # The name is the mount's own, for its socket; what push keeps under it is not shown.
        assert not (mounted.path / ".fusefs" / "manifest.json").exists()
        assert ".fusefs" not in names
        assert mounted.counters()["names_hidden"] == 0
    pulled = mounted.run_cli("pull", f"file://{place}", str(tmp_path / "pulled"))
    assert pulled.returncode == 0, pulled.stderr
    assert contents(tmp_path / "pulled") == contents(model)


def test_a_bucket_is_pulled(
    model: Path, tmp_path: Path, weed: Weed, upload: Callable[[Path], str]
) -> None:
    """What others uploaded to S3 comes back as a mount of it shows it, and can be pushed on."""
    bucket = upload(model)
    with open_mount(f"s3://{bucket}", environment=weed.environment) as mounted:
        first = tmp_path / "first"
        pulled = mounted.run_cli("pull", f"s3://{bucket}", str(first))
        assert pulled.returncode == 0, pulled.stderr
        assert contents(first) == contents(model) == contents(mounted.path)
        pushed = mounted.run_cli("push", str(first), f"file://{tmp_path}/second")
        assert pushed.returncode == 0, pushed.stderr
    assert contents(tmp_path / "second") == contents(model)


Place = tuple[str, Mapping[str, str]]


@contextmanager
def open_places(
    weed: Weed, fake_gcs: FakeGcs, azurite: Azurite, directory: Path
) -> Iterator[list[Place]]:
    """A SOURCE of every kind with room for a model, and the environment it is found in."""
    name = f"model-{uuid.uuid4().hex[:12]}"
    weed.client().create_bucket(Bucket=name)
    fake_gcs.make_bucket(name)
    with azurite.client() as client:
        client.create_container(name)
    with open_redis(directory / "redis") as redis:
        yield [
            (f"s3://{name}/llama", weed.environment),
            (f"gs://{name}/llama", fake_gcs.environment),
            (f"az://{name}/llama", azurite.environment),
            (f"{redis.source}?model=org/llama", redis.environment),
            (f"file://{directory}/llama", {}),
        ]


def test_every_store_hands_it_on_to_the_next(
    model: Path, tmp_path: Path, weed: Weed, fake_gcs: FakeGcs, azurite: Azurite
) -> None:
    """Pushed, mounted, pulled, and pushed to the next kind of store: never a byte changes."""
    folder = model
    with open_places(weed, fake_gcs, azurite, tmp_path) as places:
        for number, (source, environment) in enumerate(places):
            done = run_cli("push", str(folder), source, environment={**os.environ, **environment})
            assert done.returncode == 0, done.stderr
            with open_mount(source, environment=environment) as mounted:
                assert contents(mounted.path) == contents(model)
                file = f"{source}/config.json"
                assert mounted.run_cli("cat", file).stdout == CONFIG
                (row,) = json.loads(mounted.run_cli("ls", "--json", file).stdout)
                assert (row["name"], row["size"]) == ("config.json", len(CONFIG))
                folder = tmp_path / f"pulled-{number}"
                pulled = mounted.run_cli("pull", source, str(folder))
                assert pulled.returncode == 0, pulled.stderr
            assert contents(folder) == contents(model)
