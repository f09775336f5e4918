"""Readers that are loaders of models: safetensors, torch, transformers, Run:ai's streamer, ranks.

Each takes a job and returns what `job.told` makes of it. Every tensor ends up in memory of the
application, as on the way to a GPU: what is only mapped has not been loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.bench.job import Job, Watch, told

PAGE_BYTES = 4096
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
SAMPLED_EVERY = 1021
"""A rank keeps one element in so many of each tensor; a prime, so that no row is never seen."""

Tensors = dict[tuple[str, str], torch.Tensor]


def mmap_load(job: Job) -> dict[str, Any]:
    """Load every tensor as a loader does: safetensors maps the file, each tensor is copied out."""
    with Watch() as watch:
        tensors = _load(job)
    return told(watch, _size(job), _different(job, tensors))


def second_load(job: Job) -> dict[str, Any]:
    """Load twice; the figure is the second time, with whatever is cached by then."""
    with Watch() as cold:
        tensors = _load(job)
    tensors.clear()
    job.again()
    with Watch() as warm:
        tensors = _load(job)
    first = _size(job) / 1e9 / cold.seconds
    return told(warm, _size(job), _different(job, tensors), extra={"first_gb_per_s": first})


def read_headers(job: Job) -> dict[str, Any]:
    """Open every shard and ask which tensors it holds, as tools do; no tensor is loaded."""
    found: dict[str, list[str]] = {}
    with Watch() as watch:
        for name, path in zip(job.names, job.files, strict=True):
            with safe_open(path, "pt") as file:
                found[name] = list(file.keys())
    wrong = []
    for name, keys in found.items():
        with safe_open(job.original(name), "pt") as file:
            if keys != list(file.keys()):
                wrong.append(f"{name}: other names")
    return told(watch, 0, wrong, extra={"all_ms": watch.seconds * 1e3})


def torch_load(job: Job) -> dict[str, Any]:
    """Load a checkpoint with `torch.load(mmap=True)` and copy every tensor out of the mapping."""
    (name,) = job.names
    with Watch() as watch:
        mapped = torch.load(job.files[0], map_location="cpu", mmap=True, weights_only=True)
        tensors = {key: tensor.clone() for key, tensor in mapped.items()}
    originals = torch.load(job.original(name), map_location="cpu", mmap=True, weights_only=True)
    wrong = sorted(tensors.keys() ^ originals.keys())
    wrong += [key for key in tensors.keys() & originals.keys() if _differ(tensors, originals, key)]
    return told(watch, _size(job), [f"{name}: other values in {key}" for key in wrong])


def from_pretrained(job: Job) -> dict[str, Any]:
    """Load with transformers; touch every page, since what it returns may only be mapped."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # The architecture's module is imported on use: seconds that are no loading.
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.originals))
    with Watch() as watch:
        model = AutoModelForCausalLM.from_pretrained(job.directory, dtype="auto")
        for parameter in model.parameters():
            parameter.detach().view(torch.uint8).flatten()[::PAGE_BYTES].sum()
    loaded = dict(model.state_dict())
    originals = {key: tensor for (_, key), tensor in _originals(job).items()}
    wrong = [f"missing or unexpected: {key}" for key in sorted(loaded.keys() ^ originals.keys())]
    wrong += [
        f"other values in {key}"
        for key in loaded.keys() & originals.keys()
        if _differ(loaded, originals, key)
    ]
    return told(watch, _size(job), wrong)


def stream(job: Job) -> dict[str, Any]:
    """Load with Run:ai's streamer straight from the bucket; its tensors are the caller's own."""
    from runai_model_streamer import SafetensorsStreamer

    tensors: dict[str, torch.Tensor] = {}
    with Watch() as watch, SafetensorsStreamer() as streamer:
        streamer.stream_files([job.url + name for name in job.names])
        for key, tensor in streamer.get_tensors():
            tensors[key] = tensor
    places = {key: name for name, key in _originals(job)}
    return told(
        watch,
        _size(job),
        _different(job, {(places.get(key, "?"), key): tensor for key, tensor in tensors.items()}),
    )


def hinted_load(job: Job) -> dict[str, Any]:
    """Load with `loaderhint.torch`, which asks for all of it at once and takes it as it comes."""
    watch, tensors = _streamed(job, None)
    return told(watch, _size(job), _different(job, tensors))


def selective_load(job: Job) -> dict[str, Any]:
    """Load every fourth layer with `loaderhint.torch`, as a stage of a pipeline does."""
    watch, tensors = _streamed(job, _is_selected)
    size = sum(tensor.nbytes for tensor in tensors.values())
    wanted = {place for place in _originals(job) if _is_selected(place[1])}
    wrong = [f"{name}: missing or extra: {key}" for name, key in tensors.keys() ^ wanted]
    originals = _originals(job)
    wrong += [
        f"{name}: other values in {key}"
        for name, key in wanted & tensors.keys()
        if _differ(tensors, originals, (name, key))
    ]
    return told(watch, size, sorted(wrong))


def advised_load(job: Job) -> dict[str, Any]:
    """The mmap load, by a loader that tells `loaderhint` beforehand what it will load."""
    import loaderhint

    with Watch() as watch, loaderhint.hint(job.files):
        tensors = _load(job)
    return told(watch, _size(job), _different(job, tensors))


def _is_selected(name: str) -> bool:
    return int(name.split(".")[2]) % 4 == 0


def _streamed(job: Job, select: Callable[[str], bool] | None) -> tuple[Watch, Tensors]:
    from loaderhint.torch import iterate_files

    places = {key: name for name, key in _originals(job)}
    with Watch() as watch:
        found = dict(iterate_files(job.files, select=select))
    return watch, {(places[key], key): tensor for key, tensor in found.items()}


def ranks_load(job: Job) -> dict[str, Any]:
    """Load the model in several processes at once, each all of it, tensor by tensor.

    As the ranks of a tensor-parallel job do. A rank keeps a sample of each tensor and drops the
    rest: eight copies of a model do not fit. The clock runs from the start of the first to the end
    of the last.
    """
    start, begin = os.pipe()
    children = []
    for _ in range(job.ranks):
        results, result = os.pipe()
        pid = os.fork()
        if pid == 0:
            # A reader that is too slow is killed; its ranks go with it.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(begin)
            os.close(results)
            _be_a_rank(job, start, result)
        os.close(result)
        children.append((pid, results))
    os.close(start)
    with Watch() as watch:
        # The end of the pipe is the starting shot.
        os.close(begin)
        for _, results in children:
            os.read(results, 1)
    parsed = []
    for pid, results in children:
        with open(results, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        parsed.append(json.loads(answer or b'{"wrong": ["a rank ended early"]}'))
    watch.cpu_s = sum(answer.get("cpu_s", 0.0) for answer in parsed)
    wrong = [text for answer in parsed for text in answer["wrong"]]
    size = _size(job)
    return told(watch, size * job.ranks, wrong, wanted_bytes=size)


def _be_a_rank(job: Job, start: int, result: int) -> None:
    """Load, say so, check what was kept, tell the result; never returns."""
    os.read(start, 1)
    kept: Tensors = {}
    with Watch() as watch:
        for name, path in zip(job.names, job.files, strict=True):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    kept[name, key] = _sampled(file.get_tensor(key).clone())
    # One byte stops the parent's clock; the check comes after it.
    os.write(result, b" ")
    originals = {place: _sampled(tensor) for place, tensor in _originals(job).items()}
    wrong = [f"{name}: other values in {key}" for name, key in kept.keys() ^ originals.keys()]
    wrong += [
        f"{name}: other values in {key}"
        for name, key in kept.keys() & originals.keys()
        if _differ(kept, originals, (name, key))
    ]
    with open(result, "wb") as pipe:
        pipe.write(json.dumps({"cpu_s": watch.cpu_s, "wrong": wrong[:1]}).encode())
    os._exit(0)


def _load(job: Job) -> Tensors:
    tensors: Tensors = {}
    for name, path in zip(job.names, job.files, strict=True):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[name, key] = file.get_tensor(key).clone()
    return tensors


def _originals(job: Job) -> Tensors:
    """Map the originals; nothing is copied."""
    tensors: Tensors = {}
    for name in job.names:
        with safe_open(job.original(name), "pt") as file:
            tensors |= {(name, key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors


def _different(job: Job, tensors: Tensors) -> list[str]:
    """Tell which tensors are missing, extra, or not the same bit by bit."""
    originals = _originals(job)
    wrong = [f"{name}: missing or extra: {key}" for name, key in tensors.keys() ^ originals.keys()]
    wrong += [
        f"{name}: other values in {key}"
        for name, key in tensors.keys() & originals.keys()
        if _differ(tensors, originals, (name, key))
    ]
    return sorted(wrong)


def _differ(found: dict[Any, torch.Tensor], expected: dict[Any, torch.Tensor], key: Any) -> bool:
    one, other = found[key], expected[key]
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    return not torch.equal(one.view(torch.int16), other.view(torch.int16))


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[::SAMPLED_EVERY].clone()


def _size(job: Job) -> int:
    return sum(Path(job.original(name)).stat().st_size for name in job.names)
