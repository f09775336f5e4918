"""What is loaded, and how its readers know it: digests of files and tensors, of two versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from tests.faults.reader import Digests


@dataclass(frozen=True, slots=True)
class Model:
    """What is loaded: files in a folder, and of each the digests of its versions."""

    folder: Path
    wanted: dict[str, list[Digests]]


def describe(folder: Path) -> Model:
    """A folder of files as the readers compare it: as they are, and as `changed` makes them."""
    wanted = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        wanted[path.name] = [_digests(path.name, data), _digests(path.name, changed(data))]
    return Model(folder, wanted)


def changed(data: bytes) -> bytes:
    """Another version: every byte is another, but for the header of a shard."""
    length = int.from_bytes(data[:8], "little")
    head = 8 + length if data[8:9] == b"{" and length < len(data) else 0
    return data[:head] + data[head:].translate(bytes(range(255, -1, -1)))


def _digests(name: str, data: bytes) -> Digests:
    digests = {"": hashlib.sha256(data).hexdigest()}
    if name.endswith(".safetensors"):
        for tensor, values in safetensors.numpy.load(data).items():
            digests[tensor] = hashlib.sha256(values.tobytes()).hexdigest()
    return digests
