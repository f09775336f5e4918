"""What an application does with a model's folder, timed: one way of loading per run.

Knows nothing of fusefs: it sees a folder. A process of its own, because a loader that waits for a
page cannot be interrupted from inside, and so that each way starts with nothing in memory.

    python -m tests.demo.loads read|safetensors|transformers FOLDER [ORIGINAL]

Imports come before the clock starts; the comparison with ORIGINAL comes after it has stopped.
Prints one JSON object: `seconds`, `bytes`, `compared` (how many files or tensors), `wrong` (which
of them differ).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

READ_BYTES = 8 << 20
"""One read() of a loader that reads; the kernel cuts it into requests as it likes."""
_PAGE_BYTES = 4096
_TEXT = "Grüße: a bucket is a folder, a folder is a model."


@dataclass(slots=True)
class Result:
    """What one way of loading took, and what the comparison found."""

    seconds: float
    bytes: int
    compared: int
    wrong: list[str]


def read(folder: Path, original: Path | None) -> Result:
    """Read every file of the folder from start to end into one buffer."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    buffer = memoryview(bytearray(READ_BYTES))
    size = 0
    start = time.monotonic()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    seconds = time.monotonic() - start
    wrong = []
    if original is not None:
        expected = sorted(path.name for path in original.iterdir())
        wrong = [] if [path.name for path in files] == expected else ["(the list of files)"]
        wrong += [path.name for path in files if not _same_bytes(path, original / path.name)]
    return Result(seconds, size, len(files) if original else 0, wrong)


def safetensors(folder: Path, original: Path | None) -> Result:
    """Map every shard and copy every tensor out of it, as loaders on one thread do."""
    size = 0
    kept: dict[str, torch.Tensor] = {}
    start = time.monotonic()
    for shard in sorted(folder.glob("*.safetensors")):
        for name, tensor in _tensors(shard):
            copy = tensor.clone()
            size += copy.nbytes
            if original is not None:
                kept[name] = copy
    seconds = time.monotonic() - start
    wrong = [] if original is None else _different(kept, _all_tensors(original))
    return Result(seconds, size, len(kept), wrong)


def transformers(folder: Path, original: Path | None) -> Result:
    """Load with `from_pretrained`; touch every page, since what it returns may only be mapped."""
    # Here, not above: it takes seconds, and the other ways have no use for it.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.detach().view(torch.uint8).flatten()[::_PAGE_BYTES].sum()
    seconds = time.monotonic() - start
    loaded = dict(model.state_dict())
    size = sum(tensor.nbytes for tensor in loaded.values())
    wrong = []
    if tokenizer.decode(tokenizer(_TEXT)["input_ids"]) != _TEXT and original is not None:
        wrong.append("(the tokenizer)")
    if original is not None:
        wrong += _different(loaded, _all_tensors(original))
    return Result(seconds, size, len(loaded) if original else 0, wrong)


def _tensors(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)


def _all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    shards = folder.glob("*.safetensors")
    return {name: tensor for shard in shards for name, tensor in _tensors(shard)}


def _different(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that are missing, extra, or not the same bit by bit."""
    wrong = sorted(found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        same = one.shape == other.shape and one.dtype == other.dtype
        if not same or not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            wrong.append(name)
    return wrong


def _same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb", buffering=0) as a, other.open("rb", buffering=0) as b:
        while chunk := a.read(READ_BYTES):
            if chunk != b.read(len(chunk)):
                return False
        return not b.read(1)


WAYS: dict[str, Callable[[Path, Path | None], Result]] = {
    "read": read,
    "safetensors": safetensors,
    "transformers": transformers,
}


if __name__ == "__main__":
    way, folder, *rest = sys.argv[1:]
    result = WAYS[way](Path(folder), Path(rest[0]) if rest else None)
    print(json.dumps(asdict(result)))
