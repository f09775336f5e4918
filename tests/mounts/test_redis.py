"""Real mounts of models in Redis, loaded by an unmodified loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusefs.config import Config
from fusefs.store.source import open_writer, parse_source
from tests.harness.mounted import MountFailed, open_mount
from tests.harness.redis_server import PASSWORD, RedisServer, open_redis, open_redis_cluster
from tests.store_contract.sglang_writer import save_remote_model

MODEL = "org/model"


@pytest.fixture(params=["alone", "cluster"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that asks for a password, then a cluster."""
    opened = open_redis(tmp_path / "redis", password=PASSWORD)
    if request.param == "cluster":
        opened = open_redis_cluster(tmp_path / "redis")
    with opened as running:
        yield running


def assert_tensors(path: Path, want: dict[str, torch.Tensor]) -> None:
    """Load a file, compare, and let go of its mapping, which would keep the mount busy."""
    got = load_file(path)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_published_model(
    server: RedisServer, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of a published model is loaded bit for bit, by its name and among all."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    source = parse_source(f"{server.source}/0?model={MODEL}")
    writer = open_writer(source, Config())
    files = sorted(path for path in model_directory.iterdir() if path.is_file())
    for path in files:
        data = memoryview(path.read_bytes())
        upload = writer.begin(source.prefix + path.name, len(data))
        for index, start in enumerate(range(0, len(data), upload.part_bytes)):
            upload.put_part(index, data[start : start + upload.part_bytes])
        upload.commit()
    writer.publish(source.prefix)
    writer.close()
    for text, below in ((source.text, ""), (server.source, MODEL)):
        with open_mount(text) as mounted:
            folder = mounted.path / below
            assert sorted(path.name for path in folder.iterdir()) == [p.name for p in files]
            for path in files:
                if path.suffix == ".safetensors":
                    assert_tensors(folder / path.name, load_file(path))
                else:
                    assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_model_of_sglang(server: RedisServer, tmp_path: Path) -> None:
    """What SGLang wrote is loaded bit for bit from the file made of it."""
    torch.manual_seed(3)
    ranks = {
        rank: {f"layers.{number}.weight": torch.randn(1000, 300 + number) for number in range(12)}
        for rank in range(2)
    }
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with server.client() as client:
        save_remote_model(client, MODEL, folder, ranks)
    source = f"{server.source}?model={MODEL}"
    with open_mount(source, environment=server.environment) as mounted:
        assert (mounted.path / "config.json").read_text() == "{}"
        for rank, tensors in ranks.items():
            assert_tensors(mounted.path / f"model-rank-{rank}-part-0.safetensors", tensors)


def test_a_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says in one sentence which variable to set."""
    monkeypatch.delenv("REDISCLI_AUTH", raising=False)
    with (
        open_redis(tmp_path / "redis", password=PASSWORD) as server,
        pytest.raises(MountFailed, match="REDISCLI_AUTH"),
        open_mount(f"{server.source}?model={MODEL}"),
    ):
        raise AssertionError("mounted")
