"""The model the bench loads: shards of random bfloat16 tensors with the shapes of a Llama layer.

Not a model that computes anything; that is `tests/harness/model.py`. One idea: big enough shards
quickly, always the same bytes, laid out as real checkpoints are.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import safetensors.torch
import torch

HIDDEN = 2048
FEED_FORWARD = 8192
LAYER: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("input_layernorm", (HIDDEN,)),
    ("mlp.down_proj", (HIDDEN, FEED_FORWARD)),
    ("mlp.gate_proj", (FEED_FORWARD, HIDDEN)),
    ("mlp.up_proj", (FEED_FORWARD, HIDDEN)),
    ("self_attn.k_proj", (HIDDEN // 4, HIDDEN)),
    ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    ("self_attn.v_proj", (HIDDEN // 4, HIDDEN)),
)
"""One layer of Llama 3.2 1B: 116 MiB, tensors of 4 KiB to 32 MiB."""


def write_weights(directory: Path, shards: int, shard_bytes: int) -> tuple[str, ...]:
    """Write the shards, `model.safetensors.index.json` and `config.json`; return the shards' names.

    Each shard's tensors hold `shard_bytes` (rounded up to a row of the last tensor).
    """
    directory.mkdir(parents=True)
    names = []
    index: dict[str, str] = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensors = _tensors(number, shard_bytes)
        # `metadata` as transformers writes it: some loaders refuse a file without it.
        safetensors.torch.save_file(tensors, directory / name, metadata={"format": "pt"})
        (directory / name).chmod(0o644)
        index |= dict.fromkeys(tensors, name)
        names.append(name)
    listing = {"metadata": {"total_size": shards * shard_bytes}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(listing))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tuple(names)


def write_checkpoint(directory: Path, size_bytes: int) -> str:
    """Write `pytorch_model.bin`, a zip as `torch.save` makes it; return its name."""
    directory.mkdir(parents=True)
    path = directory / "pytorch_model.bin"
    torch.save(_tensors(0, size_bytes), path)
    path.chmod(0o644)
    return path.name


def _tensors(shard: int, shard_bytes: int) -> dict[str, torch.Tensor]:
    """Fill one shard with whole layers, the last tensor cut to what is left."""
    random = numpy.random.default_rng(shard)
    tensors: dict[str, torch.Tensor] = {}
    left = shard_bytes
    layer = 0
    while left > 0:
        for name, shape in LAYER:
            row_bytes = 2 * (shape[-1] if len(shape) > 1 else 1)
            rows = min(shape[0], -(-left // row_bytes))
            if rows <= 0:
                break
            data = bytearray(random.bytes(rows * row_bytes))
            tensor = torch.frombuffer(data, dtype=torch.bfloat16).reshape(rows, *shape[1:])
            tensors[f"model.layers.{shard * 100 + layer}.{name}.weight"] = tensor
            left -= rows * row_bytes
        layer += 1
    return tensors
