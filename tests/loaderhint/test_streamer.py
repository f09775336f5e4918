"""Loaders in the shape of others: the same calls as theirs give the same tensors."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from loaderhint import streamer
from loaderhint.plan import PlanError
from loaderhint.streamer import PrefetchLoader, SafetensorsStreamer, list_safetensors, prefetch
from tests.loaderhint.weights import assert_equal, assert_same, expected, save_model

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_streaming_as_vllm_does(folder: Path) -> None:
    """The calls that vLLM makes of Run:ai's streamer give every tensor, and its counts."""
    paths = save_model(folder)
    names = [str(path) for path in paths]
    assert sorted(list_safetensors(str(folder))) == names
    with SafetensorsStreamer() as loader:
        loader.stream_files(names, device="cpu", is_distributed=False)
        total = sum(len(metas) for metas in loader.files_to_tensors_metadata.values())
        found = dict(loader.get_tensors())
    assert_same(found, expected(*paths))
    assert total == len(found)
    metas = [meta for of_file in loader.files_to_tensors_metadata.values() for meta in of_file]
    assert {meta.name: meta.get_bytesize() for meta in metas} == {
        name: tensor.nbytes for name, tensor in found.items()
    }
    assert loader.total_size == sum(tensor.nbytes for tensor in found.values())
    assert list(loader.get_tensors()) == []


def test_the_signatures_are_those_of_the_streamer() -> None:
    """Parameters of stream_file and stream_files have Run:ai's names, order and defaults."""
    ours = inspect.signature(SafetensorsStreamer.stream_files).parameters
    assert list(ours)[1:] == [
        "paths", "s3_credentials", "device", "is_distributed", "tensor_names", "owned",
    ]  # fmt: skip
    defaults = [parameter.default for parameter in ours.values()][2:]
    assert defaults == [None, "cpu", False, None, True]
    one = inspect.signature(SafetensorsStreamer.stream_file).parameters
    assert list(one)[2:] == list(ours)[2:]


def test_names_of_the_streamer(folder: Path) -> None:
    """Chosen names, wrong ones, one instead of several, none; and a second request."""
    paths = save_model(folder)
    whole = expected(*paths)
    names = ["layers.0.F32", "layers.1.BF16"]
    with SafetensorsStreamer() as loader:
        loader.stream_files([str(path) for path in paths], tensor_names=names)
        assert_same(dict(loader.get_tensors()), {name: whole[name] for name in names})
        loader.stream_file(str(paths[0]))
        assert_same(dict(loader.get_tensors()), expected(paths[0]))
        for wrong in ("layers.0.F32", [], ["layers.7.F32"]):
            with pytest.raises(ValueError, match="tensor"):
                loader.stream_file(str(paths[0]), tensor_names=wrong)


@pytest.mark.parametrize("limit", ["-1", "0", "5000"])
def test_the_streamers_variables_are_heeded(
    folder: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and memory are as Run:ai's variables have them; what is no number is named."""
    [path] = save_model(folder, shards=1)
    monkeypatch.setenv("RUNAI_STREAMER_CONCURRENCY", "3")
    monkeypatch.setenv("RUNAI_STREAMER_MEMORY_LIMIT", limit)
    seen = streamer._environment()
    assert seen["threads"] == 3
    assert seen["memory_limit_bytes"] == {"-1": 1 << 62, "0": 1, "5000": 5000}[limit]
    with SafetensorsStreamer() as loader:
        loader.stream_file(str(path))
        assert_same(dict(loader.get_tensors()), expected(path))
        monkeypatch.setenv("RUNAI_STREAMER_MEMORY_LIMIT", "much")
        with pytest.raises(ValueError, match="RUNAI_STREAMER_MEMORY_LIMIT"):
            loader.stream_file(str(path))


def test_a_streamer_left_midway(folder: Path) -> None:
    """Leaving the `with` after one tensor stops everything; the tensor stays."""
    [path] = save_model(folder, shards=1, rows=500)
    with SafetensorsStreamer() as loader:
        loader.stream_file(str(path))
        name, tensor = next(iter(loader.get_tensors()))
    assert_equal(tensor, expected(path)[name])


def test_prefetch_as_safetensors_has_it(folder: Path) -> None:
    """Names, length, taking by name in any order and once, then iterating over the rest."""
    [path] = save_model(folder, shards=1)
    whole = expected(path)
    with prefetch(path, threads=2) as loader:
        assert sorted(loader.names()) == sorted(whole)
        assert len(loader) == len(whole)
        meta = loader.get_tensor_meta("layers.0.F32")
        assert (meta.dtype, meta.shape) == ("F32", tuple(whole["layers.0.F32"].shape))
        taken = {name: loader.take(name) for name in reversed(loader.names()[-3:])}
        with pytest.raises(KeyError):
            loader.take(next(iter(taken)))
        rest = dict(loader)
        assert not taken.keys() & rest.keys()
        assert_same(taken | rest, whole)
        assert list(loader) == []


def test_prefetch_of_a_plan(folder: Path) -> None:
    """A plan is names with None or rows; anything else is refused at once."""
    [path] = save_model(folder, shards=1)
    whole = expected(path)
    plan = {"layers.0.F64": slice(2, 5), "layers.0.I8": None}
    with prefetch(path, plan) as loader:
        assert loader.names() == list(plan)
        assert_equal(loader.take("layers.0.I8"), whole["layers.0.I8"])
        assert_equal(loader.take("layers.0.F64"), whole["layers.0.F64"][2:5])
    with pytest.raises(PlanError):
        prefetch(path, {"gone": None})
    with pytest.raises(PlanError):
        prefetch(path, {"layers.0.F64": (slice(1),)})  # type: ignore[dict-item]


def test_prefetch_keeps_its_bound_and_serves_who_waits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound of one tensor, the last tensor can still be taken first."""
    monkeypatch.setattr(streamer, "PREFETCH_BYTES_MAX", 1)
    tensors = {f"t{number}": torch.full((1000,), number) for number in range(20)}
    path = folder / "model.safetensors"
    safetensors.torch.save_file(tensors, path)
    with prefetch(path) as loader:
        assert_equal(loader.take("t9"), tensors["t9"])
        del tensors["t9"]
        assert_same(dict(loader), tensors)


def test_prefetch_closed_or_broken(folder: Path) -> None:
    """A closed loader says so; an error of loading is raised to who takes."""
    [path] = save_model(folder, shards=1)
    loader = prefetch(path)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.take(loader.names()[0])

    def broken() -> Generator[tuple[str, torch.Tensor], None, None]:
        raise OSError("no bytes")
        yield "t", torch.empty(0)

    lost = PrefetchLoader({"t": loader.get_tensor_meta("layers.0.F32")}, broken(), 1)
    lost.start()
    with pytest.raises(OSError, match="no bytes"):
        lost.take("t")
    with pytest.raises(OSError, match="no bytes"):
        list(lost)
    lost.close()
