"""Loading in two phases: what a server reads first is there at once, while weights still stream.

An engine reads configuration, tokenizer and index, builds the model, and only then asks for
weights; others read both side by side. Neither may wait behind a shard.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.harness.mounted import open_mount
from tests.harness.proxy import open_recording_proxy
from tests.harness.weed import Weed


def test_metadata_does_not_wait_for_weights(
    weed: Weed, model_bucket: str, model_directory: Path, tmp_path: Path
) -> None:
    """Every file that is no shard is read whole while no shard comes at all."""
    small = sorted(p.name for p in model_directory.iterdir() if p.suffix != ".safetensors")
    shards = sorted(p.name for p in model_directory.iterdir() if p.suffix == ".safetensors")
    assert len(small) >= 3
    with (
        open_recording_proxy(weed.endpoint, tmp_path) as proxy,
        open_mount(
            f"s3://{model_bucket}",
            environment={**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint},
        ) as mounted,
        ThreadPoolExecutor(len(shards)) as threads,
    ):
        proxy.hold_shards()
        streaming = [threads.submit(_digest, mounted.path / shard) for shard in shards]
        for name in small:
            assert (mounted.path / name).read_bytes() == (model_directory / name).read_bytes()
        assert not any(stream.done() for stream in streaming)
        proxy.release_shards()
        for shard, stream in zip(shards, streaming, strict=True):
            assert stream.result() == _digest(model_directory / shard)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
