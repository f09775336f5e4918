"""Loads safetensors into torch: each tensor as soon as its bytes are here.

The one idea: the same call is the fastest loader on a mount of fusefs and a good one anywhere. With
a daemon, bytes come out of its memory with one copy; without, many threads read the files.

    for name, tensor in iterate_files("/mnt/models/llama"):
        ...

Tensors are owned by who takes them and stay valid for ever. A loader that is closed midway, or
dropped, stops reading and leaves no thread.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from typing import TypeAlias, TypedDict, Unpack

import torch

from loaderhint import plan
from loaderhint.cuda import GpuSink, TorchGpu
from loaderhint.delivery import THREADS
from loaderhint.files import Paths
from loaderhint.loading import READY, READY_BYTES_MAX, Request, open_load
from loaderhint.tensors import CpuSink
from loaderhint.wishes import Group

__all__ = ["iterate_files", "load_file", "load_files"]

Device: TypeAlias = str | int | torch.device
"""As torch has them."""


class Options(TypedDict, total=False):
    """What `iterate_files` takes besides paths and device."""

    tensors: Iterable[str] | None
    select: plan.Select | None
    slices: Mapping[str, plan.Cut] | None
    order: str
    group: Group | None
    threads: int
    memory_limit_bytes: int | None
    window_bytes: int | None


def iterate_files(
    paths: Paths,
    *,
    device: Device = "cpu",
    tensors: Iterable[str] | None = None,
    select: plan.Select | None = None,
    slices: Mapping[str, plan.Cut] | None = None,
    order: str = READY,
    group: Group | None = None,
    threads: int = THREADS,
    memory_limit_bytes: int | None = READY_BYTES_MAX,
    window_bytes: int | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Yield `(name, tensor)` of files, or of the shards in folders.

    Args:
        paths: one path or several; a folder means its `*.safetensors`.
        device: "cpu", "cuda" or "cuda:n".
        tensors: only these, in this order unless `order` says otherwise.
        select: only the names it is true for.
        slices: by name, a slice of the first dimension, of which only the rows are fetched, or a
            tuple of slices, one for each of the first dimensions.
        order: "ready" as they are complete, "listed" as `tensors` has them (or the files),
            "offset" as they lie in the files.
        group: this process among those of the host that load the same.
        threads: reads at a time where files are read.
        memory_limit_bytes: loaded and not taken yet, so many at most; None for no limit.
        window_bytes: how much the daemon holds in slots; it has a good default.

    Raises:
        OSError: a file cannot be read; ESTALE if it was replaced meanwhile.
        HeaderError: a file is not safetensors.
        PlanError: no file has such a tensor, or it cannot be cut so.
    """
    request = Request(
        paths, tensors, select, slices, order, group, threads, memory_limit_bytes, window_bytes
    )
    return _iterate(request, device)


def load_files(
    paths: Paths, *, device: Device = "cpu", **options: Unpack[Options]
) -> dict[str, torch.Tensor]:
    """All tensors of `paths` by name, in plan order; `options` are those of `iterate_files`."""
    options.setdefault("memory_limit_bytes", None)
    request = Request(paths, **options)
    sink = _sink(device)
    with closing(sink), open_load(request, sink) as load:
        found = {part.name: sink.finish(part, memory) for part, memory in load.delivery}
        return {part.name: found[part.name].to(device) for part in load.parts}


def load_file(
    path: str | os.PathLike[str], device: Device = "cpu", **options: Unpack[Options]
) -> dict[str, torch.Tensor]:
    """All tensors of one file by name, as `safetensors.torch.load_file` has them."""
    return load_files([path], device=device, **options)


def _iterate(request: Request, device: Device) -> Generator[tuple[str, torch.Tensor], None, None]:
    sink = _sink(device)
    with closing(sink), open_load(request, sink) as load:
        for part, memory in load.delivery:
            yield part.name, sink.finish(part, memory).to(device)


def _sink(device: Device) -> CpuSink | GpuSink:
    """Straight into a GPU of CUDA; for any other device by way of the CPU's memory."""
    target = torch.device(device)
    return GpuSink(TorchGpu(target)) if target.type == "cuda" else CpuSink()
