"""The way onto a GPU: pinned buffers in between, copies on a stream of their own.

The one idea: three things overlap. While one buffer is copied to the GPU, others are filled by the
threads that read, and the application computes on its own stream; nobody waits but for the event of
what it is about to use: a thread before it fills a buffer again, the application's stream before it
reads a tensor.

Memory of the GPU is made on the side stream, so that what the allocator hands out is free in the
order of that stream, and marked as used by the application's when it is handed over.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from loaderhint.ledger import Piece, Read
from loaderhint.memory import view_of
from loaderhint.plan import Part
from loaderhint.tensors import shape

BUFFERS = 8
"""One for each thread that reads."""

BUFFER_BYTES = 16 << 20
"""As one read. In all 128 MiB of pinned memory."""


class Gpu(Protocol):
    """The few calls of CUDA that are made."""

    def empty_pinned(self, size_bytes: int) -> torch.Tensor:
        """Flat uint8 memory of the host that the GPU may read asynchronously."""

    def empty(self, size_bytes: int) -> torch.Tensor:
        """Flat uint8 memory of the GPU, made on the side stream."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Put a copy on the side stream; `source` is read some time later."""

    def record(self) -> Any:
        """An event that comes when all copies so far are done."""

    def wait(self, event: Any) -> None:
        """Wait here until it came."""

    def hand_over(self, tensor: torch.Tensor, event: Any) -> None:
        """Let the application's stream use the tensor after the event."""


class TorchGpu:
    """CUDA by torch. The mutable state is torch's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def empty_pinned(self, size_bytes: int) -> torch.Tensor:
        """As Gpu has it."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, size_bytes: int) -> torch.Tensor:
        """As Gpu has it."""
        with torch.cuda.stream(self._stream):
            return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """As Gpu has it."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def record(self) -> Any:
        """As Gpu has it."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: Any) -> None:
        """As Gpu has it."""
        event.synchronize()

    def hand_over(self, tensor: torch.Tensor, event: Any) -> None:
        """As Gpu has it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        tensor.record_stream(current)


@dataclass(slots=True)
class _Target:
    """Memory of one part on the GPU, and the event of the last copy into it."""

    flat: torch.Tensor
    event: Any = None


@dataclass(slots=True)
class _Buffer:
    """A pinned buffer, and the event after which it is free."""

    flat: torch.Tensor
    view: memoryview
    event: Any = None


class GpuSink:
    """Writes into memory of a GPU.

    The mutable state of GpuSink is the pool of buffers, made when first needed.
    INVARIANT: copies and their event are issued under `_issuing`, so that a target's event is that
    of its last copy.
    """

    def __init__(self, gpu: Gpu, buffers: int = BUFFERS, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._gpu = gpu
        self._buffer_bytes = buffer_bytes
        self._issuing = threading.Lock()
        self._unmade = buffers
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()

    def begin(self, part: Part) -> _Target:
        """Memory for a part."""
        return _Target(self._gpu.empty(part.size_bytes))

    def fill(self, pieces: Sequence[Piece], read: Read) -> None:
        """Read into a buffer, have it copied, and so on."""
        at = 0
        total = sum(piece.size_bytes for piece in pieces)
        while at < total:
            size = min(self._buffer_bytes, total - at)
            buffer = self._take_buffer()
            try:
                read([buffer.view[:size]])
                self._copy(pieces, at, size, buffer)
            finally:
                self._free.put(buffer)
            at += size

    def finish(self, part: Part, memory: _Target) -> torch.Tensor:
        """The tensor of a whole part, for the application's stream."""
        if memory.event is not None:
            self._gpu.hand_over(memory.flat, memory.event)
        return shape(part, memory.flat)

    def close(self) -> None:
        """Let go of the buffers, once nothing is copied from them any more."""
        while not self._free.empty():
            buffer = self._free.get()
            if buffer.event is not None:
                self._gpu.wait(buffer.event)

    def _take_buffer(self) -> _Buffer:
        """A free buffer, whose last copy is done."""
        with self._issuing:
            make = self._unmade > 0 and self._free.empty()
            self._unmade -= make
        if make:
            flat = self._gpu.empty_pinned(self._buffer_bytes)
            return _Buffer(flat, view_of(flat.data_ptr(), self._buffer_bytes))
        buffer = self._free.get()
        if buffer.event is not None:
            self._gpu.wait(buffer.event)
            buffer.event = None
        return buffer

    def _copy(self, pieces: Sequence[Piece], at: int, size: int, buffer: _Buffer) -> None:
        """Copy the buffer, which holds bytes `[at, at + size)` of all pieces together."""
        with self._issuing:
            begin = 0
            targets = []
            for piece in pieces:
                end = begin + piece.size_bytes
                first, last = max(begin, at), min(end, at + size)
                if first < last:
                    offset = piece.offset + first - begin
                    target = piece.memory.flat[offset : offset + last - first]
                    self._gpu.copy(target, buffer.flat[first - at : last - at])
                    targets.append(piece.memory)
                begin = end
            buffer.event = self._gpu.record()
            for target in targets:
                target.event = buffer.event
