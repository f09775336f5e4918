"""A folder that is pushed to any store and pulled from it is the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.errors import FusefsError
from fusefs.store.base import Source
from fusefs.transfer.crew import Crew
from fusefs.transfer.progress import Report
from fusefs.transfer.pull import Pull
from fusefs.transfer.push import Destination, Push
from tests.store_contract.subjects import Subject
from tests.transfer.folders import Watcher, contents, fill

SOURCE = Source("s3", "bucket", "", "s3://bucket/")
FILES = {
    "model.safetensors": 11_000_000,
    "model.safetensors.index.json": 300,
    "tokenizer/ünï code+ %2F.txt": 70_000,
    "日本語/deep/er/a b": 1,
    "empty": 0,
}


def push(subject: Subject, folder: Path, force: bool = False) -> Report:
    """Push with a new writer."""
    writer = subject.writer()
    try:
        destination = Destination(SOURCE, subject.store, writer)
        return Push(str(folder), destination, Crew(4), Watcher(), force).run(dry_run=False)
    finally:
        writer.close()


def pull(subject: Subject, folder: Path) -> dict[str, bytes]:
    """Pull into a new folder and return what is in it."""
    Pull(SOURCE, subject.store, str(folder), Crew(4), Watcher(), False).run(dry_run=False)
    return contents(folder)


def test_pushed_and_pulled_is_the_same(subject: Subject, tmp_path: Path) -> None:
    """Every byte and name comes back; a second push sends nothing."""
    folder = fill(tmp_path / "model", FILES)
    assert push(subject, folder).files_moved == len(FILES)
    assert pull(subject, tmp_path / "pulled") == contents(folder)
    assert push(subject, folder).files_moved == 0


def test_a_model_is_replaced_by_force(subject: Subject, tmp_path: Path) -> None:
    """Another model is refused, and with force it is all that is left."""
    push(subject, fill(tmp_path / "old", FILES))
    new = fill(tmp_path / "new", {"model.safetensors": 5_000_000, "config.json": 2}, seed=2)
    with pytest.raises(FusefsError, match="--force"):
        push(subject, new)
    push(subject, new, force=True)
    assert pull(subject, tmp_path / "pulled") == contents(new)
