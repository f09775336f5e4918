"""What the plugins of engines share: extra configuration, groups, tensors, hints."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from loaderhint import serving
from loaderhint.delivery import THREADS
from loaderhint.loading import READY_BYTES_MAX
from tests.harness.hint_server import HintServer
from tests.loaderhint.weights import assert_same, expected, save_model


def test_without_a_word_the_defaults_count() -> None:
    """No extra configuration is the default."""
    assert serving.settings_of({}) == serving.settings_of(None) == serving.Settings()
    assert serving.Settings() == serving.Settings(False, THREADS, READY_BYTES_MAX)


@pytest.mark.parametrize(("said", "meant"), [(-1, None), (0, 1), (1 << 30, 1 << 30)])
def test_the_memory_limit_is_run_ais(said: int, meant: int | None) -> None:
    """-1 is no limit, 0 one tensor at a time, else bytes."""
    assert serving.settings_of({"memory_limit": said}).memory_limit_bytes == meant


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"concurency": 8}, "concurency; there are concurrency, distributed, memory_limit"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"distributed": 1}, "distributed"),
        ({"memory_limit": -2}, "memory_limit"),
        ({"memory_limit": "1G"}, "memory_limit"),
        (["concurrency"], "an object"),
    ],
)
def test_what_is_not_legal_is_refused_by_name(extra: object, word: str) -> None:
    """Unknown keys and values out of range are named, with what there is."""
    with pytest.raises(ValueError, match=word):
        serving.settings_of(extra)


def test_ranks_of_one_launch_are_one_group() -> None:
    """Ranks with one parent and the same files have one id, whatever their paths; others do not."""
    first = serving.group_of(["/a/2.safetensors", "/a/1.safetensors"], 0, 2)
    second = serving.group_of(["/b/1.safetensors", "/b/2.safetensors"], 1, 2)
    other = serving.group_of(["/a/3.safetensors"], 0, 2)
    assert first and second and other
    assert first.id == second.id != other.id
    assert (first.rank, second.rank, first.size) == (0, 1, 2)


def test_one_rank_is_no_group() -> None:
    """Who loads alone, or does not know its place, has no group."""
    assert serving.group_of(["/a"], 0, 1) is None
    assert serving.group_of(["/a"], 2, 2) is None


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_stream_yields_every_tensor(tmp_path: Path, limit: int) -> None:
    """All tensors of all files come, bit for bit, in owned memory, under any limit."""
    paths = save_model(tmp_path)
    settings = serving.settings_of({"memory_limit": limit, "concurrency": 2})
    assert_same(dict(serving.stream([str(path) for path in paths], settings)), expected(*paths))


def test_a_stream_leaves_out_what_is_not_kept(tmp_path: Path) -> None:
    """`keep` decides by name."""
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m")
    found = dict(serving.stream([str(tmp_path / "m")], serving.Settings(), keep=lambda n: n == "b"))
    assert list(found) == ["b"]


def test_a_distributed_stream_reads_by_the_group(tmp_path: Path) -> None:
    """With `distributed`, the ranks of the group load together; each leaves out what it skips."""
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m")
    dist.init_process_group("gloo", f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        tensors = serving.stream(
            [str(tmp_path / "m")],
            serving.settings_of({"distributed": True}),
            process_group=dist.group.WORLD,
            keep=lambda name: name == "b",
        )
        found = dict(tensors)
    finally:
        dist.destroy_process_group()
    assert list(found) == ["b"]
    assert torch.equal(found["b"], torch.ones(3))


def test_hints_live_while_the_engine_reads(folder: Path, server: HintServer) -> None:
    """One plan however often files are listed; the connection ends when they were read."""
    files = [str(path) for path in save_model(folder)]
    told = serving.Told()
    for _ in range(2):
        told.tell(files, lambda listed: serving.group_of(listed, 1, 2))
    assert list(told.while_read(iter([1, 2]))) == [1, 2]
    (plan,) = server.wait_for("plan")
    assert plan["group"]["rank"] == 1
    assert len(plan["files"]) == len(files)


def test_off_a_mount_nothing_is_asked(tmp_path: Path) -> None:
    """Files on a plain disk are not hinted, and nobody is asked for a group."""
    files = [str(path) for path in save_model(tmp_path)]
    asked: list[object] = []
    told = serving.Told()
    told.tell(files, asked.append)
    assert asked == []
