"""The arena: fixed slots of shared memory that hold the blocks, mapped by daemon and workers.

Workers write into slots, the daemon only reads them. Slots are recycled and never given back, since
first-touch page faults cost more than the copy (1.8 GB/s fresh against 26 GB/s recycled).
"""

from __future__ import annotations

import mmap
import os

from fusefs.engine.shared_memory import map_shared_memory, open_shared_memory
from fusefs.policy.budget import ArenaBudget


class Arena:
    """The daemon's read-only view of the slots.

    The mutable state of Arena is `scratch`, the joint for replies whose blocks are not neighbours.
    INVARIANT: a view handed out by `join` is used up before the next call of `join`: a READ reply
    is written in the same step of the trio thread in which its handler returns.
    """

    def __init__(self, budget: ArenaBudget) -> None:
        self.budget = budget
        self.block_size = budget.block_size
        memory = open_shared_memory(budget.size_bytes)
        self.fd, self._read_only_fd = memory.fd, memory.read_only_fd
        self._map = map_shared_memory(self.fd, mmap.PROT_READ)
        self._view = memoryview(self._map)
        self.scratch = bytearray(0)

    @property
    def may_be_handed_out(self) -> bool:
        """Whether there is a descriptor that nobody can write through."""
        return self._read_only_fd is not None

    def open_read_only(self) -> int:
        """A new descriptor for a peer, which the caller closes. Raises OSError.

        Opened anew: descriptors that are mere copies share what fcntl(2) sets.
        """
        return os.open(f"/proc/self/fd/{self._read_only_fd}", os.O_RDONLY | os.O_CLOEXEC)

    def view(self, slot: int, offset: int, size: int) -> memoryview:
        """Bytes `[offset, offset + size)` from the start of `slot`, maybe into those after it."""
        start = slot * self.block_size + offset
        return self._view[start : start + size]

    def join(self, pieces: list[memoryview]) -> memoryview:
        """One contiguous view of `pieces`, copied; valid until the next call."""
        size = sum(len(piece) for piece in pieces)
        if size > len(self.scratch):
            self.scratch = bytearray(size)
        position = 0
        for piece in pieces:
            self.scratch[position : position + len(piece)] = piece
            position += len(piece)
        return memoryview(self.scratch)[:size]

    def close(self) -> None:
        """Unmap and free the memory."""
        self._view.release()
        self._map.close()
        os.close(self.fd)
        if self._read_only_fd is not None:
            os.close(self._read_only_fd)
