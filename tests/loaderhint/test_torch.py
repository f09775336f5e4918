"""Loading into torch: every bit as safetensors loads it, with a daemon, a bad one, or none."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loaderhint import delivery, plan
from loaderhint.header import HeaderError
from loaderhint.loading import Request, open_load
from loaderhint.tensors import CpuSink
from loaderhint.torch import iterate_files, load_file, load_files
from tests.harness.hint_server import HintServer
from tests.loaderhint.weights import assert_equal, assert_same, expected, save_model, save_raw

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(params=["none", "warm", "slots"])
def daemon(request: pytest.FixtureRequest) -> HintServer | None:
    """No daemon, one that only warms, one with slots."""
    if request.param == "none":
        return None
    server: HintServer = request.getfixturevalue("server")
    server.behaviour.features = ["warm", "slots"] if request.param == "slots" else ["warm"]
    return server


@pytest.fixture(autouse=True)
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests write is in the page cache; slots are for what is not."""
    monkeypatch.setattr("loaderhint.loading.cached_bytes", lambda fd: 0 * fd)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("order", ["ready", "listed", "offset"])
def test_every_type_is_loaded_bit_by_bit(folder: Path, order: str) -> None:
    """All types, scalars and empty tensors of two shards, in any order, equal safetensors'."""
    paths = save_model(folder)
    assert_same(load_files(folder, order=order), expected(*paths))
    assert_same(load_file(paths[1]), expected(paths[1]))


def test_the_daemon_is_used(server: HintServer, folder: Path) -> None:
    """With slots, all bytes come in slots and every slot is given back."""
    paths = save_model(folder)
    with open_load(Request(paths), CpuSink()) as load:
        assert load.plane == "slots"
        assert len(list(load.delivery)) == len(load.parts)
        blocks = sum(-(-path.stat().st_size // 4096) for path in paths)
        server.wait_for("release", blocks)
    assert server.slots_sent == blocks
    assert sum(len(request["slots"]) for request in server.of("release")) == blocks
    assert [request["mode"] for request in server.of("plan")] == ["slots"]


@pytest.mark.usefixtures("daemon")
def test_selections_and_slices(folder: Path) -> None:
    """Names, a predicate and slices of any dimension give what slicing the whole gives."""
    paths = save_model(folder)
    whole = expected(*paths)
    first = "layers.0.F32"
    found = load_files(folder, select=plan.keep_layers({1}))
    assert_same(found, {name: tensor for name, tensor in whole.items() if "layers.1." in name})
    names = ["layers.1.I8", first, "layers.0.empty", "layers.0.BF16.scalar"]
    pairs = list(iterate_files(folder, tensors=names, order="listed"))
    assert [name for name, _ in pairs] == names
    slices: dict[str, plan.Cut] = {
        first: slice(3, 9),
        "layers.0.I16": (slice(None), slice(1, 4)),
        "layers.1.U16": (slice(-4, None), slice(2)),
        "layers.1.I64": slice(5, 5),
    }
    cut = load_files(folder, tensors=slices, slices=slices)
    for name, one in slices.items():
        assert_equal(cut[name], whole[name][one].contiguous(), name)
        assert cut[name].untyped_storage().nbytes() == cut[name].nbytes


def test_only_the_rows_of_a_slice_are_asked_for(server: HintServer, folder: Path) -> None:
    """A slice of the first dimension costs its rows, one of another the whole tensor."""
    [path] = save_model(folder, shards=1)
    name, other = "layers.0.F64", "layers.0.I16"
    whole = expected(path)
    slices: dict[str, plan.Cut] = {name: slice(0, 2), other: (slice(None), slice(1))}
    load_files(path, tensors=[name, other], slices=slices)
    [request] = server.of("plan")
    extents = request["files"][0]["extents"]
    assert [stop - start for start, stop in extents] == [
        whole[name][:2].nbytes,
        whole[other].nbytes,
    ]


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "result"),
    [
        ("F4", [2, 4], 4, (2, 2)),
        ("F6_E2M3", [2, 4], 6, (2, 3)),
        ("F6_E3M2", [2, 2, 2], 6, (6,)),
        ("F8_E8M0", [5], 5, (5,)),
    ],
)
def test_types_that_torch_packs_or_lacks(
    folder: Path, dtype: str, shape: list[int], size: int, result: tuple[int, ...]
) -> None:
    """F4 is packed in pairs, F6 comes as bytes, and no bit is lost."""
    data = bytes(range(7, 7 + size))
    path = save_raw(folder / "raw.safetensors", dtype, shape, data)
    tensor = load_file(path)["w"]
    assert tuple(tensor.shape) == result
    assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == data
    if dtype.startswith("F6"):
        assert tensor.dtype == torch.uint8
        with pytest.raises(ValueError, match="by rows only"):
            load_file(path, slices={"w": (slice(None), slice(1))})
    else:
        assert_equal(tensor, expected(path)["w"])


def hang_up(server: HintServer) -> None:
    """In the middle, with slots pinned that are overwritten at once."""
    server.behaviour.hang_up_after_slots = 5


def fail(server: HintServer) -> None:
    """A file that the daemon could not fetch."""
    server.behaviour.fail_after_slots = 5


def lie_about(**fields: Any) -> Callable[[HintServer], None]:
    """Slots that are not what they are said to be, and cannot be."""

    def change(server: HintServer) -> None:
        server.behaviour.lie = fields

    return change


def half_a_frame(server: HintServer) -> None:
    """A reply that never ends."""
    server.behaviour.instead["release"] = b"\x40\x00\x00\x00{"


def garbage(server: HintServer) -> None:
    """A reply that is none."""
    server.behaviour.instead["release"] = b"\xff" * 64


def no_descriptor(server: HintServer) -> None:
    """A map without an arena."""
    server.behaviour.silent = {"map"}


def stall(server: HintServer) -> None:
    """Slots that never come."""
    server.behaviour.stall.set()


@pytest.mark.parametrize(
    "misbehave",
    [
        hang_up,
        fail,
        lie_about(at=1 << 40),
        lie_about(at=-4096),
        lie_about(at=None),
        lie_about(size=1 << 40),
        lie_about(inode=1),
        lie_about(start="0"),
        lie_about(ev="news"),
        half_a_frame,
        garbage,
        no_descriptor,
        stall,
    ],
)
def test_a_bad_daemon_costs_time_but_no_bit(
    server: HintServer,
    folder: Path,
    misbehave: Callable[[HintServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever becomes of the slots, the tensors are right, and nothing is raised."""
    monkeypatch.setattr(delivery, "STALL_S", 0.2)
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.05)
    monkeypatch.setattr("loaderhint.client.REQUEST_TIMEOUT_S", 0.2)
    paths = save_model(folder)
    misbehave(server)
    assert_same(load_files(paths), expected(*paths))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("order", ["ready", "listed"])
def test_slots_in_any_order_and_any_pieces(
    server: HintServer, folder: Path, seed: int, order: str
) -> None:
    """Slots may come backwards, overlap, and come twice: each byte counts once."""
    server.behaviour.shuffle = random.Random(seed)
    paths = save_model(folder)
    request = Request(paths, order=order, memory_limit_bytes=2000)
    sink = CpuSink()
    with open_load(request, sink) as load:
        found = {part.name: sink.finish(part, memory) for part, memory in load.delivery}
    assert_same(found, expected(*paths))
    assert [request["mode"] for request in server.of("plan")] == ["slots"]


def test_slots_said_twice_count_once(server: HintServer, folder: Path) -> None:
    """A daemon that sends the first slot's place for every slot completes no tensor by it."""
    server.behaviour.lie = {"start": 0}
    paths = save_model(folder, shards=1)
    names = set(expected(*paths))
    with open_load(Request(paths), CpuSink()) as load:
        assert {part.name for part, _ in load.delivery} == names


def test_a_cached_file_is_read_not_fetched(
    server: HintServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel has in its cache is not fetched into slots again."""
    monkeypatch.setattr("loaderhint.loading.cached_bytes", lambda fd: os.fstat(fd).st_size)
    paths = save_model(folder)
    assert_same(load_files(paths), expected(*paths))
    assert [request["mode"] for request in server.of("plan")] == ["warm"]


@pytest.mark.usefixtures("daemon")
def test_closed_midway_nothing_stays(folder: Path) -> None:
    """A loader left after two tensors leaves no thread and no descriptor; tensors stay."""
    paths = save_model(folder, rows=400)
    whole = expected(*paths)
    tensors = iterate_files(paths, memory_limit_bytes=1)
    taken = dict([next(tensors), next(tensors)])
    tensors.close()
    for name, tensor in taken.items():
        assert_equal(tensor, whole[name], name)


def test_leaving_asks_for_nothing_more(server: HintServer, folder: Path) -> None:
    """A loader closed midway does not hint what it will not read."""
    paths = save_model(folder, rows=400)
    tensors = iterate_files(paths, memory_limit_bytes=1)
    next(tensors)
    tensors.close()
    assert len(server.of("plan")) == 1


def test_an_error_in_the_sink_is_raised(folder: Path) -> None:
    """Memory that cannot be had ends the load with its own error, not with silence."""

    class Full(CpuSink):
        def begin(self, part: plan.Part) -> Any:
            if part.size_bytes:
                raise MemoryError(part.name)
            return super().begin(part)

    paths = save_model(folder)
    with open_load(Request(paths), Full()) as load, pytest.raises(MemoryError, match=r"layers\."):
        list(load.delivery)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("order", ["ready", "listed", "offset"])
def test_what_waits_to_be_taken_is_bounded(
    folder: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nobody taking, loading stops near the limit, in every order."""
    monkeypatch.setattr(delivery, "CHUNK_BYTES", 4096)
    save_model(folder, rows=2000)
    total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    begun: list[int] = []

    class Counting(CpuSink):
        def begin(self, part: plan.Part) -> Any:
            begun.append(part.size_bytes)
            return super().begin(part)

    request = Request(folder, order=order, memory_limit_bytes=100_000, threads=2)
    with open_load(request, Counting()) as load:
        parts = iter(load.delivery)
        next(parts)
        threading.Event().wait(0.3)
        # One taken, two that one thread is in the middle of (a read may span tensors), one that is
        # too much already, and the next that the same read began.
        assert sum(begun) <= 5 * max(begun) < total / 2
        assert sum(1 for _ in parts) == len(load.parts) - 1
    assert sum(begun) == sum(part.size_bytes for part in load.parts)


def test_errors_of_reading_are_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that shrinks, is none, or is not there: an error that names it."""
    monkeypatch.setattr(delivery, "CHUNK_BYTES", 4096)
    [path] = save_model(folder, shards=1, rows=400)
    tensors = iterate_files(path, memory_limit_bytes=1, threads=1)
    next(tensors)
    os.truncate(path, 100)
    with pytest.raises(OSError, match="ends early") as caught:
        list(tensors)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    with pytest.raises(HeaderError, match="model-00001"):
        load_file(path)
    with pytest.raises(FileNotFoundError):
        load_file(folder / "gone.safetensors")
    with pytest.raises(plan.PlanError, match="ready, listed, offset"):
        load_files(folder, order="random")
