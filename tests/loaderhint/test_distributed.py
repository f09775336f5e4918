"""Four ranks on two mounts: each byte is read once, every rank has every bit, errors reach all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loaderhint.distributed import _batches, _owners
from loaderhint.header import TensorInfo
from loaderhint.plan import Part
from tests.loaderhint.weights import expected, save_model

WORLD = 4

Reports = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Reports:
    """What each of four ranks saw, two of them on one folder, two on its copy."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "a").mkdir()
    save_model(root / "a", rows=50)
    shutil.copytree(root / "a", root / "b")
    ranks = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.loaderhint.ranks",
                str(rank), str(WORLD), str(root / "rendezvous"), str(root / "ab"[rank // 2]),
                "ab"[rank // 2],
            ],
            cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    seen = []
    try:
        for rank in ranks:
            output, errors = rank.communicate(timeout=150)
            assert rank.returncode == 0, errors
            seen.append({one["what"]: one for one in map(json.loads, output.splitlines())})
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    seen[0]["model"] = {
        "bytes": sum(one.nbytes for one in expected(*(root / "a").iterdir()).values())
    }
    return seen


def test_split_reads_are_of_each_byte_once(reports: Reports) -> None:
    """Together the ranks read the model once, each about its part, and all in one order."""
    model = reports[0]["model"]["bytes"]
    for what in ("split", "small batches"):
        read = [rank[what]["read_bytes"] for rank in reports]
        assert sum(read) == model
        assert all(rank[what]["names"] == reports[0][what]["names"] for rank in reports)
    assert max(rank["small batches"]["read_bytes"] for rank in reports) < model / 2


def test_ranks_of_one_mount_load_alone(reports: Reports) -> None:
    """On one mount, where a daemon fetches once, every rank reads all it wants."""
    model = reports[0]["model"]["bytes"]
    assert [rank["shared"]["read_bytes"] for rank in reports] == [model] * WORLD


def test_one_ranks_trouble_is_everybodys(reports: Reports) -> None:
    """The rank with the broken file raises its own error, the others name it; none hangs."""
    assert "not a safetensors file" in reports[2]["no header"]["own"]
    for rank in (0, 1, 3):
        assert "rank 2 cannot load" in reports[rank]["no header"]["peer"]
    assert all("rank 3 has other" in rank["other wishes"]["peer"] for rank in reports)
    assert "the disk is gone" in reports[1]["read error"]["own"]
    for rank in (0, 2, 3):
        assert "rank 1 cannot load: OSError" in reports[rank]["read error"]["peer"]


def test_ranks_leave_no_thread_of_ours(reports: Reports) -> None:
    """After all this, no thread of a loader is left in any rank."""
    for rank in reports:
        assert not [name for name in rank["end"]["threads"] if name.startswith("loaderhint")]


def part(size: int) -> Part:
    """A part of so many bytes."""
    return Part(0, TensorInfo("t", "U8", (size,), 0, size), 0, size, (size,))


def test_batches_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts go together, large ones alone; neighbouring turns are on different mounts."""
    monkeypatch.setattr("loaderhint.distributed.BATCH_BYTES", 10)
    sizes = [
        [one.size_bytes for one in batch] for batch in _batches([*map(part, [4, 6, 1, 99, 0, 3])])
    ]
    assert sizes == [[4, 6], [1], [99], [0, 3]]
    assert _owners(["a", "a", "b", "b"]) == [0, 2, 1, 3]
    assert _owners(["a", "b", "b", "c"]) == [0, 1, 3, 2]
