"""Small models of every type, and the comparison with what safetensors itself loads."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from loaderhint.tensors import DTYPES

PLAIN = {name: dtype for name, dtype in DTYPES.items() if name not in ("F4", "F8_E8M0")}


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes as a tensor; of bool 0 and 1, which is all that a bool may be."""
    generator = torch.Generator().manual_seed(seed)
    size = dtype.itemsize
    for dimension in shape:
        size *= dimension
    highest = 2 if dtype == torch.bool else 256
    flat = torch.randint(0, highest, (size,), dtype=torch.uint8, generator=generator)
    return flat.view(dtype).reshape(shape)


def save_model(folder: Path, shards: int = 2, rows: int = 37) -> list[Path]:
    """Shards with every type that safetensors writes, scalars and empty tensors among them."""
    paths = []
    for number in range(shards):
        tensors = {}
        for position, (name, dtype) in enumerate(PLAIN.items()):
            seed = number * 100 + position
            tensors[f"layers.{number}.{name}"] = noise((rows, 3 + position), dtype, seed)
            tensors[f"layers.{number}.{name}.scalar"] = noise((), dtype, seed)
        tensors[f"layers.{number}.empty"] = torch.empty((0, 4))
        paths.append(folder / f"model-{number + 1:05d}-of-{shards:05d}.safetensors")
        safetensors.torch.save_file(tensors, paths[-1])
    return paths


def save_raw(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    """A file of one tensor `w`, written by hand: of types that safetensors does not write."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def expected(*paths: Path) -> dict[str, torch.Tensor]:
    """What safetensors loads."""
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors |= safetensors.torch.load_file(path)
    return tensors


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same names, types, shapes and bits."""
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert_equal(found[name], tensor, name)


def assert_equal(found: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    """The same type, shape and bits."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
    assert found.is_contiguous()
    assert torch.equal(bits(found), bits(wanted)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, NaNs and all."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
