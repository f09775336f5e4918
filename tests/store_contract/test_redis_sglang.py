"""Models that SGLang wrote into Redis, as files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fusefs.config import Config
from fusefs.errors import CorruptData, ObjectChanged, ObjectNotFound
from fusefs.objects import Extent
from fusefs.store.base import Store
from fusefs.store.source import open_store, open_writer, parse_source
from tests.harness.redis_server import RedisServer
from tests.store_contract.sglang_writer import save_remote_model
from tests.store_contract.test_contract import list_all, read, read_all

MODEL = "org/mo[d]el*"
RANK = "model-rank-{}-part-0.safetensors"


@pytest.fixture(params=["redis", "redis_cluster"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty server, then an empty cluster, from the side of a writer."""
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    with server.client() as opened:
        opened.flushall()
        opened.server = server
        yield opened


@pytest.fixture
def store(client: Any) -> Iterator[Store]:
    """A store of the model."""
    opened = open_store(parse_source(f"{client.server.source}?model={MODEL}"), Config())
    yield opened
    opened.close()


@pytest.fixture
def ranks() -> dict[int, dict[str, torch.Tensor]]:
    """Two ranks with tensors of several widths, an empty one and one without dimensions."""
    torch.manual_seed(5)
    return {
        rank: {
            "model.norm.bias": torch.randn(3, dtype=torch.float64),
            "model.embed.weight": torch.randn(700, 1000).bfloat16(),
            "model.layers.0.q.weight": torch.randn(65, 33).half(),
            "model.layers.0.mask": torch.rand(7) > 0.5,
            "model.layers.1.packed": torch.randint(0, 255, (5, 3), dtype=torch.uint8),
            "model.layers.10.scale": torch.tensor(2.5 + rank),
            "model.layers.2.none": torch.empty(0, 4),
        }
        for rank in range(2)
    }


def write(client: Any, folder: Path, ranks: dict[int, dict[str, torch.Tensor]]) -> None:
    """As SGLang would."""
    (folder / "config.json").write_text('{"ü": 1}')
    (folder / "empty.json").write_text("")
    (folder / "tokenizer.model").write_bytes(b"\xff")
    save_remote_model(client, MODEL, folder, ranks)
    client.set("org/mode/keys/rank_0/of-another-model", b"x")


def test_every_tensor_bit_for_bit(
    client: Any, store: Store, tmp_path: Path, ranks: dict[int, dict[str, torch.Tensor]]
) -> None:
    """Each rank is one safetensors file with its tensors; the text files lie beside them."""
    write(client, tmp_path, ranks)
    store.check(f"{MODEL}/")
    objects, prefixes, _ = list_all(store, f"{MODEL}/")
    names = {"config.json", "empty.json", RANK.format(0), RANK.format(1)}
    assert (set(objects), prefixes) == ({f"{MODEL}/{name}" for name in names}, set())
    assert all(store.head(key) == meta for key, meta in objects.items())
    assert read_all(store, objects[f"{MODEL}/config.json"]) == '{"ü": 1}'.encode()
    for rank, tensors in ranks.items():
        meta = objects[f"{MODEL}/{RANK.format(rank)}"]
        data = read_all(store, meta)
        assert len(data) == meta.size
        (length,) = struct.unpack("<Q", data[:8])
        assert length % 8 == 0
        found = load(data)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        for extent in (
            Extent(0, 9),
            Extent(length, length + 30),
            Extent(length + 8, length + 9),
            Extent(meta.size - 700_001, meta.size),
        ):
            assert read(store, meta, extent) == data[extent.start : extent.stop]


def test_landed_covers_header_and_tensors(
    client: Any, store: Store, tmp_path: Path, ranks: dict[int, dict[str, torch.Tensor]]
) -> None:
    """`landed` counts from the start of the extent, the header made here included."""
    write(client, tmp_path, ranks)
    meta = store.head(f"{MODEL}/{RANK.format(0)}")
    reports: list[int] = []
    memory = memoryview(bytearray(meta.size))
    store.read_into(meta.id, Extent(0, meta.size), memory, reports.append)
    assert reports == sorted(set(reports)) and reports[-1] == meta.size
    store.read_into(meta.id, Extent(0, 5), memory[:5], reports.append)
    assert reports[-1] == 5


def test_a_tensor_that_is_gone_or_other(
    client: Any, store: Store, tmp_path: Path, ranks: dict[int, dict[str, torch.Tensor]]
) -> None:
    """A tensor that was deleted, or whose size changed, makes another version."""
    write(client, tmp_path, ranks)
    meta = store.head(f"{MODEL}/{RANK.format(0)}")
    client.delete(f"{MODEL}/keys/rank_0/model.embed.weight")
    with pytest.raises(ObjectChanged):
        read_all(store, meta)
    client.set(f"{MODEL}/keys/rank_0/model.embed.weight", save({"tensor_bytes": torch.zeros(5)}))
    fresh = open_store(parse_source(f"{client.server.source}?model={MODEL}"), Config())
    after = fresh.head(meta.id.key)
    assert after.id != meta.id
    assert torch.equal(load(read_all(fresh, after))["model.embed.weight"], torch.zeros(5))
    with pytest.raises(ObjectChanged):
        read_all(fresh, meta)
    fresh.close()


def test_what_is_beside_the_model(
    client: Any, store: Store, tmp_path: Path, ranks: dict[int, dict[str, torch.Tensor]]
) -> None:
    """Names that are not there are not found, and nothing lies below files."""
    with pytest.raises(ObjectNotFound):
        store.check(f"{MODEL}/")
    write(client, tmp_path, ranks)
    for name in ("nope", RANK.format(2), "files/config.json", "config.json/x"):
        with pytest.raises(ObjectNotFound):
            store.head(f"{MODEL}/{name}")
    meta = store.head(f"{MODEL}/config.json")
    with pytest.raises(CorruptData):
        read(store, meta, Extent(0, meta.size + 1))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"short",
        b"\xff" * 200,
        save({"tensor_bytes": torch.zeros(9)})[:-1],
        save({"tensor_bytes": torch.zeros(9)}) + b"x",
        save({"weight": torch.zeros(9)}),
        save({"tensor_bytes": torch.zeros(9), "more": torch.zeros(2)}),
        save({"tensor_bytes": torch.zeros(9)}, {"note": "x" * 2000}),
    ],
)
def test_a_blob_that_is_none(
    client: Any, store: Store, tmp_path: Path, blob: bytes, ranks: dict[int, Any]
) -> None:
    """A value that SGLang would not write refuses the model by the key's name."""
    write(client, tmp_path, ranks)
    client.set(f"{MODEL}/keys/rank_1/bad", blob)
    for action in (
        lambda: store.list_page(f"{MODEL}/", None),
        lambda: store.head(f"{MODEL}/{RANK.format(1)}"),
    ):
        with pytest.raises(CorruptData, match=r"keys/rank_1/bad.*SGLang"):
            action()


def test_ours_comes_first(
    client: Any, store: Store, tmp_path: Path, ranks: dict[int, dict[str, torch.Tensor]]
) -> None:
    """Once a model of ours is published under the name, that is what one sees."""
    write(client, tmp_path, ranks)
    before = store.head(f"{MODEL}/config.json")
    writer = open_writer(parse_source(f"{client.server.source}?model={MODEL}"), Config())
    writer.put(f"{MODEL}/config.json", b"ours")
    writer.publish(f"{MODEL}/")
    writer.close()
    objects, _, _ = list_all(store, f"{MODEL}/")
    assert {key: read_all(store, meta) for key, meta in objects.items()} == {
        f"{MODEL}/config.json": b"ours"
    }
    with pytest.raises(ObjectNotFound):
        store.head(f"{MODEL}/{RANK.format(0)}")
    assert read_all(store, before) == '{"ü": 1}'.encode()
