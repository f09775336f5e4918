"""Unmodified loaders on the mount path, and what they make the store do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from runai_model_streamer import SafetensorsStreamer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed
from tests.mounts.test_changes import wait_until


@pytest.fixture
def mounted(weed: Weed, model_bucket: str) -> Iterator[Mounted]:
    """The model's bucket, freshly mounted."""
    with open_mount(f"s3://{model_bucket}", environment=weed.environment) as mount:
        yield mount


def shards(directory: Path) -> list[Path]:
    """The model's shards in order."""
    return sorted(directory.glob("*.safetensors"))


def test_safetensors_loads_every_tensor_bit_for_bit(
    mounted: Mounted, model_directory: Path
) -> None:
    """load_file gives the same tensors from the mount as from the disk, and costs one download."""
    total = 0
    for ours, theirs in zip(shards(mounted.path), shards(model_directory), strict=True):
        got, want = load_file(ours), load_file(theirs)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
        total += theirs.stat().st_size
    index = (model_directory / "model.safetensors.index.json").stat().st_size
    counters = mounted.counters()
    assert counters["bytes_fetched"] <= total + index, counters


def test_transformers_loads_the_model_from_the_path(
    mounted: Mounted, model_directory: Path
) -> None:
    """from_pretrained on the mount path gives the same parameters and the same tokens."""
    ours = AutoModelForCausalLM.from_pretrained(mounted.path, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.bfloat16)
    want = dict(theirs.named_parameters())
    got = dict(ours.named_parameters())
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    text = "the quick brown fox"
    tokens = [AutoTokenizer.from_pretrained(path)(text)["input_ids"] for path in
              (mounted.path, model_directory)]  # fmt: skip
    assert tokens[0] == tokens[1]


def test_run_ais_streamer_reads_the_path(mounted: Mounted, model_directory: Path) -> None:
    """Run:ai's streamer on the paths of the mount gives the tensors that are on the disk."""
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in shards(mounted.path)])
        got = {name: tensor.clone() for name, tensor in streamer.get_tensors()}
    want = {name: one for path in shards(model_directory) for name, one in load_file(path).items()}
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_folders_of_a_pipeline_load(
    weed: Weed, upload: Callable[[Path], str], tmp_path: Path
) -> None:
    """Models of several folders, each with its own index or none, load in any order of folders.

    The layout of diffusers: what a folder has is in its index, and every folder loads by itself.
    """
    for number, folder in enumerate(("text_encoder", "transformer", "vae")):
        (tmp_path / folder).mkdir()
        weight_map = {}
        for shard in range(number):
            name = f"diffusion_pytorch_model-{shard + 1:05d}-of-{number:05d}.safetensors"
            tensors = {f"{folder}.{shard}.{n}": torch.randn(512, 512) for n in range(4)}
            save_file(tensors, tmp_path / folder / name)
            weight_map.update(dict.fromkeys(tensors, name))
        save_file({f"{folder}.alone": torch.randn(300)}, tmp_path / folder / "one.safetensors")
        weight_map[f"{folder}.alone"] = "one.safetensors"
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (tmp_path / folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with open_mount(f"s3://{upload(tmp_path)}", environment=weed.environment) as mount:
        for folder in ("vae", "text_encoder", "transformer"):
            path = mount.path / folder
            index = (path / "diffusion_pytorch_model.safetensors.index.json").read_text()
            for name, file in json.loads(index)["weight_map"].items():
                with safe_open(path / file, framework="pt") as ours:
                    # A copy: a mapping would keep the mount busy.
                    got = ours.get_tensor(name).clone()
                assert torch.equal(got, load_file(tmp_path / folder / file)[name]), name


def test_looking_at_headers_downloads_the_headers(weed: Weed, model_bucket: str) -> None:
    """Opening every shard for its tensor names fetches one block of each, and nothing besides."""
    with open_mount(f"s3://{model_bucket}", environment=weed.environment) as mounted:
        names = 0
        for shard in shards(mounted.path):
            with safe_open(shard, framework="pt") as file:
                names += len(file.keys())
        assert names > 0
        wait_until(lambda: mounted.status()["arena"]["fetching"] == 0)
        assert mounted.counters()["bytes_fetched"] <= len(shards(mounted.path)) << 20


def test_small_files_come_along_with_the_first(mounted: Mounted, model_directory: Path) -> None:
    """After config.json the tokenizer and the rest are there already, and no weights."""
    small = [path for path in model_directory.iterdir() if path.suffix == ".json"]
    size = sum(path.stat().st_size for path in small)
    os.listdir(mounted.path)
    (mounted.path / "config.json").read_bytes()
    wait_until(lambda: mounted.counters()["bytes_fetched"] >= size)
    before = mounted.counters()
    for path in small:
        assert (mounted.path / path.name).read_bytes() == path.read_bytes()
    after = mounted.counters()
    assert after["misses"] == before["misses"]
    assert after["bytes_fetched"] == size


def test_reading_one_shard_brings_the_next_one(mounted: Mounted) -> None:
    """While a loader works on the first shard, the second one is on its way."""
    first, second, third = shards(mounted.path)
    size = first.stat().st_size
    with first.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
        total = size + second.stat().st_size + third.stat().st_size
        wait_until(lambda: mounted.counters()["bytes_fetched"] >= total)
    assert mounted.counters()["bytes_read"] <= size
    second.read_bytes()
    third.read_bytes()
    assert mounted.counters()["prefetch_wasted_bytes"] == 0
    assert mounted.counters()["misses"] < 20


def test_a_second_load_costs_nothing(mounted: Mounted) -> None:
    """The kernel keeps the pages across opens: no second download."""
    first = {shard: load_file(shard).keys() for shard in shards(mounted.path)}
    fetched = mounted.counters()["bytes_fetched"]
    second = {shard: load_file(shard).keys() for shard in shards(mounted.path)}
    assert first == second
    assert mounted.counters()["bytes_fetched"] == fetched
