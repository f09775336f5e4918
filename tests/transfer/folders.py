"""Folders to push and destinations to push to, for the tests of transfers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fusefs.store.base import Source
from fusefs.transfer.crew import Crew
from fusefs.transfer.progress import Report
from fusefs.transfer.pull import Pull
from fusefs.transfer.push import Destination, Push
from tests.harness.simulated import SimulatedStore
from tests.harness.simulated_writer import SimulatedWriter

PREFIX = "models/one/"
SOURCE = Source("s3", "bucket", PREFIX, f"s3://bucket/{PREFIX}")
PART_BYTES = 1 << 20

MODEL = {
    "model-00001-of-00002.safetensors": 5 * PART_BYTES + 17,
    "model-00002-of-00002.safetensors": 4 * PART_BYTES + 1,
    "model.safetensors.index.json": 300,
    "config.json": 200,
    "tokenizer/vocab.txt": 5_000,
    "tokenizer/ünï code+ %2F.bin": 77,
    "empty": 0,
}
"""Two files that go in parts, and small ones with what names can hold."""


class Watcher:
    """A `Progress` that remembers: each step with its total and what was advanced."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def begin(self, what: str, total_bytes: int) -> None:
        """See `Progress`."""
        self.steps.append((what, total_bytes, 0))

    def advance(self, count: int) -> None:
        """See `Progress`."""
        what, total, done = self.steps[-1]
        self.steps[-1] = (what, total, done + count)


def fill(folder: Path, files: dict[str, int], seed: int = 1) -> Path:
    """Make files of these sizes, each of its own bytes."""
    for number, (name, size) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(seed * 1000 + number).randbytes(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, but for what is ours."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".fusefs" not in path.relative_to(folder).parts
    }


class Bucket:
    """A simulated bucket as pushes and pulls use it."""

    def __init__(self) -> None:
        self.store = SimulatedStore()
        self.unfinished: dict[str, dict[int, bytes]] = {}
        self.writer = self.make_writer()

    def make_writer(self) -> SimulatedWriter:
        """The writer of the next process."""
        self.writer = SimulatedWriter(self.store, self.unfinished, PART_BYTES)
        return self.writer

    def push(
        self, folder: Path, *, force: bool = False, dry_run: bool = False, jobs: int = 4
    ) -> Report:
        """Push as a new process would."""
        destination = Destination(SOURCE, self.store, self.make_writer())
        return Push(str(folder), destination, Crew(jobs), Watcher(), force).run(dry_run)

    def pull(
        self, folder: Path, *, force: bool = False, dry_run: bool = False, jobs: int = 4
    ) -> Report:
        """Pull as a new process would."""
        return Pull(SOURCE, self.store, str(folder), Crew(jobs), Watcher(), force).run(dry_run)

    def read(self, name: str) -> bytes:
        """The bytes of an object of the model."""
        return self.store.data(PREFIX + name)

    def names(self) -> set[str]:
        """The names of all objects of the model, ours included."""
        return {key.removeprefix(PREFIX) for key in self.store.all_keys()}

    def manifest(self) -> dict[str, Any]:
        """The manifest, decoded: size and digest by name."""
        rows = json.loads(self.read(".fusefs/manifest.json"))["files"]
        return {row["name"]: row for row in rows}
