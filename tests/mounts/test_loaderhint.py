"""The client library on real mounts: every bit, each byte once, and no more than is wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import loaderhint
from loaderhint.torch import iterate_files
from tests.harness.model import make_model
from tests.harness.mounted import ROOT, Mounted, open_mount

WORLD = 4
RANK_TIMEOUT_S = 100

_RANK = """
import hashlib, json, sys
import torch, torch.distributed as dist
from loaderhint.distributed import iterate_files
rank, world, rendezvous, folder, share = sys.argv[1:]
dist.init_process_group(
    "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world)
)
digests = {}
for name, tensor in iterate_files([folder], share=share):
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    digests[name] = hashlib.sha256(flat.tobytes()).hexdigest()
dist.destroy_process_group()
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three shards, of 60 MB in all."""
    directory = tmp_path_factory.mktemp("weights")
    make_model(directory, shards=3, shard_bytes=20 << 20)
    return directory


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor, as safetensors itself has it."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def shard_bytes(directory: Path) -> int:
    """The size of all shards together."""
    return sum(shard.stat().st_size for shard in directory.glob("*.safetensors"))


def assert_loaded(mounted: Mounted, weights: Path) -> None:
    """Load all of it through the library, and compare bit by bit."""
    want = tensors_of(weights)
    got = dict(iterate_files([mounted.path]))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_model_is_loaded_out_of_the_arena(weights: Path) -> None:
    """Through an arena smaller than the model; what is READ are headers."""
    with open_mount(f"file://{weights}", "--memory", "32M") as mounted:
        assert_loaded(mounted, weights)
        counters = mounted.counters()
        assert counters["bytes_fetched"] <= 1.05 * shard_bytes(weights)
        assert counters["bytes_read"] < 1 << 20


def test_every_fourth_layer_costs_little_more_than_itself(weights: Path) -> None:
    """A subset fetches what it needs, to whole blocks."""
    want = tensors_of(weights)
    layers = {name: int(name.split(".")[2]) for name in want if name.startswith("model.layers.")}
    assert len(set(layers.values())) >= 8
    with open_mount(f"file://{weights}") as mounted:
        got = dict(iterate_files([mounted.path], select=lambda name: layers.get(name, 1) % 4 == 0))
        counters = mounted.counters()
    assert got.keys() == {name for name, layer in layers.items() if layer % 4 == 0}
    assert all(torch.equal(got[name], want[name]) for name in got)
    needed = sum(tensor.nbytes for tensor in got.values())
    # Blocks are fetched whole: a header's in each shard, and one more for each of these layers,
    # which are small here. In models of usual size that is nothing.
    blocks = 3 + len({layer for layer in layers.values() if layer % 4 == 0})
    assert counters["bytes_fetched"] <= needed + (blocks << 20)


def test_a_hint_brings_what_was_named(weights: Path) -> None:
    """After the hint is done, the named tensor is read without asking the store."""
    shard = "model-00002-of-00003.safetensors"
    tensors = load_file(weights / shard)
    name = max(tensors, key=lambda name: tensors[name].nbytes)
    with (
        open_mount(f"file://{weights}") as mounted,
        loaderhint.hint([mounted.path], tensors=[name]) as hint,
    ):
        *_, last = hint.watch()
        assert last.ready_bytes == last.total_bytes > 0
        assert not hint.failed
        fetched = mounted.counters()["bytes_fetched"]
        with safe_open(mounted.path / shard, "pt") as file:
            got = file.get_tensor(name).clone()
        assert torch.equal(got, tensors[name])
        # The kernel reads ahead of the mapping by itself; the shard's other 16 MB stay away.
        assert mounted.counters()["bytes_fetched"] <= fetched + (4 << 20)


def test_ranks_on_two_mounts_fetch_the_model_once(weights: Path, tmp_path: Path) -> None:
    """Four gloo ranks, two on each of two mounts: all have every bit, the store gave each once."""
    source = f"file://{weights}"
    with open_mount(source) as one, open_mount(source) as other:
        ranks = [
            subprocess.Popen(
                [
                    sys.executable, "-c", _RANK, str(rank), str(WORLD),
                    str(tmp_path / "rendezvous"), str((one, other)[rank // 2].path),
                    "ab"[rank // 2],
                ],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(WORLD)
        ]  # fmt: skip
        try:
            answers = [json.loads(rank.communicate(timeout=RANK_TIMEOUT_S)[0]) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        fetched = one.counters()["bytes_fetched"] + other.counters()["bytes_fetched"]
    assert answers[0].keys() == tensors_of(weights).keys()
    assert all(answer == answers[0] for answer in answers)
    assert fetched <= 1.05 * shard_bytes(weights) + (6 << 20)  # and the headers, on both
