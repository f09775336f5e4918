"""Models for tests, the demo and the bench: what a hub would serve, made here, the same every time.

Real files in the format of `transformers`: sharded safetensors with an index, a configuration of
Llama that loads, and a byte-level tokenizer. The numbers are noise of the size of real weights
(finite, so the model runs); no two stretches of it are alike, so a misplaced byte shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SEED = 20
"""Any number: all content follows from it."""

_SPECIAL = ("<s>", "</s>", "<unk>")
_VOCABULARY = 256 + len(_SPECIAL)
_HIDDEN_SIZES = (32, 64, 128, 256, 512, 1024, 2048)
_LAYERS_PER_SHARD_MIN = 2
"""Shards of real models hold several layers; fewer, and a shard's size could not be met."""

# The exponent of every number is one of two, so |x| lies in [2^-7, 2^-5): as in trained weights.
_KEPT_BITS = 0x80FF
_EXPONENT = 0x3C00


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk: its folder, all its files by name, its shards, and how much there is."""

    directory: Path
    files: tuple[Path, ...]
    shards: tuple[Path, ...]
    size_bytes: int
    tensors: int


def make_model(
    directory: Path, shards: int, shard_bytes: int, dtype: torch.dtype = torch.bfloat16
) -> Model:
    """Write a model of `shards` files of about `shard_bytes` each into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = _configuration(shards * shard_bytes // dtype.itemsize, shards, dtype)
    shapes = list(_shapes(config))
    total_bytes = sum(math.prod(shape) for _, shape in shapes) * dtype.itemsize
    generator = np.random.Generator(np.random.SFC64(SEED))
    paths = [directory / f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    weight_map: dict[str, str] = {}
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    before = 0
    for name, shape in shapes:
        size = math.prod(shape) * dtype.itemsize
        groups[min(shards - 1, (before + size // 2) * shards // total_bytes)].append((name, shape))
        before += size
    for path, group in zip(paths, groups, strict=True):
        tensors = {name: _noise(generator, shape).to(dtype) for name, shape in group}
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
        weight_map.update(dict.fromkeys(tensors, path.name))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    _write_tokenizer(directory)
    files = tuple(sorted(directory.iterdir()))
    size_bytes = sum(path.stat().st_size for path in files)
    return Model(directory, files, tuple(paths), size_bytes, len(shapes))


def _configuration(numbers: int, shards: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the widest Llama that still has a few layers for each shard."""
    hidden = _HIDDEN_SIZES[0]
    for candidate in _HIDDEN_SIZES:
        layers = (numbers - 2 * _VOCABULARY * candidate) // _layer_numbers(candidate)
        if layers >= _LAYERS_PER_SHARD_MIN * shards:
            hidden = candidate
    layers = max(1, round((numbers - 2 * _VOCABULARY * hidden) / _layer_numbers(hidden)))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "vocab_size": _VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _layer_numbers(hidden: int) -> int:
    # q and o, k and v at a quarter, three projections of the feed-forward part.
    return 2 * hidden * hidden + 2 * hidden * (hidden // 4) + 9 * hidden * hidden + 2 * hidden


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor, in the order of the model."""
    hidden, inner, kv = (
        config["hidden_size"],
        config["intermediate_size"],
        config["hidden_size"] // 4,
    )
    yield "model.embed_tokens.weight", (_VOCABULARY, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (_VOCABULARY, hidden)


def _noise(generator: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    count = math.prod(shape)
    # The generator's own 64-bit words, four numbers in each: 3 GB/s, twenty times `bytes()`.
    raw = generator.bit_generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
    raw &= _KEPT_BITS
    raw |= _EXPONENT
    return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).reshape(shape)


def _write_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer: every text is its bytes, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_json(directory / "special_tokens_map.json", special)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    _write_json(directory / "tokenizer_config.json", {**special, **kind})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
