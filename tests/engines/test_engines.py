"""vLLM and SGLang, the released ones, load a model from a mount and generate what they should.

`make test-engines` runs these; they are no part of `make test`, whose environment has no engines.
Greedy tokens in float32 are the same bits for the same weights, so one wrong tensor shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.engine import ENVIRONMENT, generate, run_script, write_plugin
from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed

pytestmark = pytest.mark.timeout(400)

MOUNT_LIMIT_S = 360.0
"""The mount's watchdog, longer than an engine's run."""

DOWNLOADS_MAX = 1.02
"""Of the model's size: one download, and what a header costs besides."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The model on disk and in a bucket, and the tokens that follow from it."""

    folder: Path
    bucket: str
    shards: int
    size_bytes: int
    tokens: list[int]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our entry points, as installed."""
    return write_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, weed: Weed) -> Checkpoint:
    """A small Llama in shards, in a bucket; its tokens come from transformers and the disk."""
    work = tmp_path_factory.mktemp("checkpoint")
    folder = work / "model"
    run_script("make_model.py", str(folder), environment=ENVIRONMENT, log=work / "make.log")
    client = weed.client()
    client.create_bucket(Bucket="engines")
    files = sorted(folder.iterdir())
    for file in files:
        client.upload_file(str(file), "engines", f"llama/{file.name}")
    shards = [file for file in files if file.suffix == ".safetensors"]
    tokens = generate("transformers", folder, work).tokens
    size_bytes = sum(file.stat().st_size for file in files)
    return Checkpoint(folder, "engines", len(shards), size_bytes, tokens)


@contextmanager
def cold_mount(weed: Weed, checkpoint: Checkpoint) -> Iterator[tuple[Mounted, Path]]:
    """The bucket, freshly mounted, and the model's folder in it; it may cost one download."""
    source = f"s3://{checkpoint.bucket}"
    with open_mount(source, environment=weed.environment, limit_s=MOUNT_LIMIT_S) as mounted:
        yield mounted, mounted.path / "llama"
        fetched = mounted.counters()["bytes_fetched"]
        assert fetched <= DOWNLOADS_MAX * checkpoint.size_bytes, mounted.counters()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_unmodified_engine_loads_from_the_mount(
    engine: str, weed: Weed, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Without any plugin: from the mount and from the disk the same tokens, by one download."""
    assert generate(engine, checkpoint.folder, tmp_path).tokens == checkpoint.tokens
    with cold_mount(weed, checkpoint) as (_, folder):
        said = generate(engine, folder, tmp_path)
    assert said.tokens == checkpoint.tokens
    assert said.log == []


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_default_format_says_what_it_reads(
    engine: str, weed: Weed, checkpoint: Checkpoint, plugin: Path, tmp_path: Path
) -> None:
    """With the plugin and no flag the daemon hears of all shards once, over the socket."""
    with cold_mount(weed, checkpoint) as (_, folder):
        said = generate(engine, folder, tmp_path, plugin=plugin)
    assert said.tokens == checkpoint.tokens
    assert len(said.lines(f"told fusefs of {checkpoint.shards} files by socket")) == 1, said.log
    assert said.lines("WARNING") == []


def test_vllm_streams_by_its_own_format(
    weed: Weed, checkpoint: Checkpoint, plugin: Path, tmp_path: Path
) -> None:
    """`--load-format fusefs` takes the tensors out of the daemon's slots."""
    with cold_mount(weed, checkpoint) as (_, folder):
        extra = {"concurrency": 8, "memory_limit": 64 << 20}
        said = generate(
            "vllm",
            folder,
            tmp_path,
            plugin=plugin,
            load_format="fusefs",
            model_loader_extra_config=extra,
        )
    assert said.tokens == checkpoint.tokens
    assert len(said.lines(f"loading {checkpoint.shards} files by slots")) == 1, said.log
    assert said.lines("WARNING") == []


def test_sglang_streams_by_the_private_format(
    weed: Weed, checkpoint: Checkpoint, plugin: Path, tmp_path: Path
) -> None:
    """`--load-format private` takes the tensors out of the daemon's slots."""
    with cold_mount(weed, checkpoint) as (_, folder):
        said = generate(
            "sglang",
            folder,
            tmp_path,
            plugin=plugin,
            load_format="private",
            model_loader_extra_config='{"concurrency": 8, "memory_limit": 67108864}',
        )
    assert said.tokens == checkpoint.tokens
    assert len(said.lines(f"loading {checkpoint.shards} files by slots")) == 1, said.log
    assert said.lines("WARNING") == []


def test_two_ranks_of_vllm_cost_one_download(
    weed: Weed, checkpoint: Checkpoint, plugin: Path, tmp_path: Path
) -> None:
    """At tensor-parallel 2 both ranks stream all shards, and the bucket is read once."""
    with cold_mount(weed, checkpoint) as (_, folder):
        said = generate(
            "vllm",
            folder,
            tmp_path,
            plugin=plugin,
            load_format="fusefs",
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
        )
    assert said.tokens == checkpoint.tokens
    loading = said.lines(f"loading {checkpoint.shards} files by")
    assert len({line.split()[0] for line in loading}) == 2, said.log
    assert said.lines("WARNING") == []
