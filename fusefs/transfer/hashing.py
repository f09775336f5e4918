"""SHA-256 of files, in a loop that can be watched and stopped: a shard takes many seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

_PIECE_BYTES = 1 << 20
"""Past the size where the interpreter's share of the time shows."""


def hash_descriptor(file_fd: int, told: Callable[[int], None]) -> str:
    """The SHA-256 of an open file from its beginning, in hex.

    `told(n)` hears of every `n` bytes as they are done; what it raises ends the work.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_PIECE_BYTES)
    with open(file_fd, "rb", buffering=0, closefd=False) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            told(count)
    return digest.hexdigest()
