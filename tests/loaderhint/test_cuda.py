"""The way onto a GPU, with a GPU that is a stub: it copies as late as CUDA may, and no later.

No GPU was at hand: what is shown is the order of calls, and that no buffer is used too early.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from loaderhint import cuda, delivery
from loaderhint.loading import Request, open_load
from tests.loaderhint.weights import assert_same, expected, save_model

pytestmark = pytest.mark.usefixtures("nothing_left")


class Event:
    """How many copies were on the stream when it was recorded."""

    def __init__(self, copies: int) -> None:
        self.copies = copies


class LazyGpu:
    """Copies nothing until somebody waits for it; the host's memory is read only then.

    The mutable state is the stream, a list of copies, and how far it has run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._run = 0
        self.pinned = 0
        self.handed_over = 0

    def empty_pinned(self, size_bytes: int) -> torch.Tensor:
        self.pinned += 1
        return torch.full((size_bytes,), 0xEE, dtype=torch.uint8)

    def empty(self, size_bytes: int) -> torch.Tensor:
        return torch.full((size_bytes,), 0xDD, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self._lock:
            self._stream.append((target, source))

    def record(self) -> Event:
        with self._lock:
            return Event(len(self._stream))

    def wait(self, event: Event) -> None:
        with self._lock:
            for target, source in self._stream[self._run : event.copies]:
                target.copy_(source)
            self._run = max(self._run, event.copies)

    def hand_over(self, tensor: torch.Tensor, event: Event) -> None:
        assert tensor.dtype == torch.uint8
        self.handed_over += 1
        self.wait(event)


@pytest.mark.parametrize(("buffers", "buffer_bytes"), [(1, 512), (3, 4096), (8, 1 << 20)])
@pytest.mark.parametrize("order", ["ready", "listed"])
def test_copies_in_flight_lose_no_bit(
    folder: Path, buffers: int, buffer_bytes: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late the GPU copies, tensors are right: a buffer is filled again only after it."""
    monkeypatch.setattr(delivery, "CHUNK_BYTES", 8192)
    paths = save_model(folder, rows=200)
    gpu = LazyGpu()
    sink = cuda.GpuSink(gpu, buffers, buffer_bytes)
    tensors = {}
    with open_load(Request(paths, order=order, memory_limit_bytes=50_000), sink) as load:
        for part, memory in load.delivery:
            tensors[part.name] = sink.finish(part, memory)
    sink.close()
    assert_same(tensors, expected(*paths))
    assert gpu.pinned <= buffers
    assert gpu.handed_over == sum(part.size_bytes > 0 for part in load.parts)


@pytest.mark.usefixtures("server")
def test_slots_are_staged_before_they_are_given_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a slot are in the pinned buffer when the slot is released, not later."""
    monkeypatch.setattr("loaderhint.loading.cached_bytes", lambda fd: 0 * fd)
    paths = save_model(folder)
    sink = cuda.GpuSink(LazyGpu(), 2, 3000)
    with open_load(Request(paths), sink) as load:
        assert load.plane == "slots"
        tensors = {part.name: sink.finish(part, memory) for part, memory in load.delivery}
    sink.close()
    assert_same(tensors, expected(*paths))


def test_a_load_left_midway_waits_for_its_copies(folder: Path) -> None:
    """Buffers are not let go of while a copy reads them."""
    paths = save_model(folder, rows=200)
    gpu = LazyGpu()
    sink = cuda.GpuSink(gpu, 2, 4096)
    with open_load(Request(paths, memory_limit_bytes=1), sink) as load:
        next(iter(load.delivery))
    sink.close()
    assert gpu._run == len(gpu._stream)


class Recorder:
    """Stands for torch.cuda: says in which order it was called, and on which stream."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on = "default"

    def Stream(self, device: torch.device) -> str:  # noqa: N802 torch's name
        return f"side of {device}"

    def Event(self) -> Recorder:  # noqa: N802 torch's name
        return self

    def record(self, stream: str) -> None:
        self.calls.append(f"record on {stream}")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def current_stream(self, device: torch.device) -> Recorder:
        return self

    def wait_event(self, event: Recorder) -> None:
        self.calls.append("wait for event")

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.on = self.on, stream
        yield
        self.on = before


class Memory:
    """Stands for a tensor of the GPU."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def copy_(self, source: object, non_blocking: bool) -> None:
        self._recorder.calls.append(f"copy on {self._recorder.on}, async {non_blocking}")

    def record_stream(self, stream: object) -> None:
        self._recorder.calls.append("record stream")


def test_the_calls_of_cuda_are_on_their_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and copies belong to the side stream; the application's waits, and is recorded."""
    recorder = Recorder()
    monkeypatch.setattr(torch, "cuda", recorder)

    def empty(size: int, **how: object) -> Memory:
        kind = "pinned" if how.get("pin_memory") else f"on {how['device']}"
        recorder.calls.append(f"{size} bytes {kind} in {recorder.on}")
        return Memory(recorder)

    monkeypatch.setattr(torch, "empty", empty)
    gpu = cuda.TorchGpu(torch.device("cuda:1"))
    gpu.empty_pinned(7)
    memory = gpu.empty(5)
    gpu.copy(memory, memory)
    event = gpu.record()
    gpu.wait(event)
    gpu.hand_over(memory, event)
    assert recorder.calls == [
        "7 bytes pinned in default",
        "5 bytes on cuda:1 in side of cuda:1",
        "copy on side of cuda:1, async True",
        "record on side of cuda:1",
        "synchronize",
        "wait for event",
        "record stream",
    ]
