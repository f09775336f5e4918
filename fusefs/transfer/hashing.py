"""Sums of files, in a loop that can be watched and stopped: a shard takes many seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fusefs.policy.crc import CRC32, find_computing
from fusefs.store.checksums import PIECE_BYTES


def hash_descriptor(file_fd: int, told: Callable[[int], None]) -> str:
    """The SHA-256 of an open file from its beginning, in hex.

    `told(n)` hears of every `n` bytes as they are done; what it raises ends the work.
    """
    return _read_through(file_fd, told, lambda piece: None)


def hash_and_sum(file_fd: int, told: Callable[[int], None]) -> tuple[str, bytes]:
    """`hash_descriptor`, and the CRC32 of each piece of `PIECE_BYTES`, 4 bytes each."""
    compute = find_computing(CRC32)
    crcs = bytearray()
    sha256 = _read_through(file_fd, told, lambda piece: crcs.extend(compute(piece).to_bytes(4)))
    return sha256, bytes(crcs)


def _read_through(
    file_fd: int, told: Callable[[int], None], take: Callable[[memoryview], None]
) -> str:
    """Hash the file, and show it to `take` piece by piece: all full but the last."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE_BYTES))
    with open(file_fd, "rb", buffering=0, closefd=False) as stream:
        filled = 0
        while count := stream.readinto(buffer[filled:]):
            digest.update(buffer[filled : filled + count])
            told(count)
            filled += count
            if filled == PIECE_BYTES:
                take(buffer)
                filled = 0
        if filled:
            take(buffer[:filled])
    return digest.hexdigest()
