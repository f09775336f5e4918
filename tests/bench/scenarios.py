"""What is measured: a table, no I/O.

One idea: a scenario is a reader, the folder it reads, the unit of its figure, and who takes part.
A contestant takes part where its figure says something: nobody lists 10,000 names by raw fetch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.content import CHECKPOINT, CONFIGURATION, LLAMA, MODEL, OBJECTS
from tests.bench.contestants import FUSEFS, MOUNTS, RAW, RUNAI, TMPFS
from tests.bench.report import GB_PER_S, KIB_PER_FILE, MB_PER_S, MS, PSS_MIB

WITH_CEILING = (RAW, *MOUNTS, TMPFS)
WITHOUT_CEILING = (*MOUNTS, TMPFS)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done: `reader` (of `application.py`) on `folder`, told in `unit`, by `names`.

    `tuned_for` says which of a peer's variants is best here (`peers.py`). Memory is watched in
    runs of their own: looking at it costs time.
    """

    name: str
    title: str
    reader: str
    folder: str
    unit: str
    names: tuple[str, ...]
    tuned_for: str
    watches_memory: bool = False
    ranks: int = 1


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "read",
        "cold read(), all shards in turn, 1 MiB, one thread",
        "read", MODEL, GB_PER_S, WITH_CEILING, "read",
    ),
    Scenario(
        "mmap",
        "cold load, safetensors' mmap + clone of every tensor",
        "mmap", MODEL, GB_PER_S, (*WITH_CEILING, RUNAI), "mmap",
    ),
    Scenario(
        "hinted",
        "cold load with loaderhint.torch, all tensors, to the CPU",
        "hinted", MODEL, GB_PER_S, (*WITH_CEILING, RUNAI), "mmap",
    ),
    Scenario(
        "selective",
        "cold load of every fourth layer with loaderhint.torch; speed of what was wanted",
        "selective", MODEL, GB_PER_S, (FUSEFS, TMPFS), "mmap",
    ),
    Scenario(
        "advised",
        "the mmap load by a loader that gives a hint first",
        "advised", MODEL, GB_PER_S, WITHOUT_CEILING, "mmap",
    ),
    Scenario(
        "transformers",
        "cold from_pretrained of a model of two shards",
        "transformers", LLAMA, GB_PER_S, WITH_CEILING, "mmap",
    ),
    Scenario(
        "torch",
        "cold torch.load(mmap=True) of one .bin + clone of every tensor",
        "torch", CHECKPOINT, GB_PER_S, WITH_CEILING, "mmap",
    ),
    Scenario(
        "ranks4",
        "4 processes load the same model at once, safetensors' mmap; speed of all together",
        "ranks", MODEL, GB_PER_S, WITH_CEILING, "mmap", ranks=4,
    ),
    Scenario(
        "ranks8",
        "8 processes load the same model at once, safetensors' mmap; speed of all together",
        "ranks", MODEL, GB_PER_S, WITH_CEILING, "mmap", ranks=8,
    ),
    Scenario(
        "second",
        "the mmap load again on the same mount, page cache warm",
        "second", MODEL, GB_PER_S, WITHOUT_CEILING, "mmap",
    ),
    Scenario(
        "random",
        "random preads of 1 MiB in one large .bin, 4 threads",
        "random", CHECKPOINT, MB_PER_S, WITHOUT_CEILING, "random",
    ),
    Scenario(
        "ttfb",
        "open a cold file and read its first byte",
        "ttfb", MODEL, MS, WITHOUT_CEILING, "head",
    ),
    Scenario(
        "headers",
        "open all shards for their tensors' names; what the origin sent per shard",
        "headers", MODEL, KIB_PER_FILE, MOUNTS, "head",
    ),
    Scenario(
        "small",
        "open and read config.json, tokenizer.json, the index, …",
        "small", CONFIGURATION, MS, WITHOUT_CEILING, "names",
    ),
    Scenario(
        "list",
        "list a folder of many objects and stat each",
        "list", OBJECTS, MS, WITHOUT_CEILING, "names",
    ),
    Scenario(
        "memory",
        "peak PSS of the mount's processes during a cold read; what s3fs and rclone keep in files "
        "(here on tmpfs) is not in it",
        "read", MODEL, PSS_MIB, MOUNTS, "read", watches_memory=True,
    ),
)  # fmt: skip
"""In the order in which they run."""
