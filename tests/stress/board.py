"""What every thread of the stress has done, in memory that all processes share.

One row for each thread, which alone writes it; the watcher reads. So it sees when somebody makes no
progress, also when that one waits in the kernel and cannot be asked.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_ROW = struct.Struct("<dQQdQ")
"""When the last operation ended (monotonic), operations, bytes, longest operation in seconds, and
how many were wrong."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one thread has done."""

    at_s: float
    operations: int
    bytes: int
    longest_s: float
    wrong: int


class Board:
    """Rows in a file; `rows` is how many."""

    def __init__(self, path: Path, rows: int) -> None:
        self.rows = rows
        with path.open("r+b") as file:
            file.truncate(max(path.stat().st_size, rows * _ROW.size))
            self._memory = mmap.mmap(file.fileno(), rows * _ROW.size)

    def begin(self) -> None:
        """The clock of all threads starts now."""
        for number in range(self.rows):
            self.write(number, Row(time.monotonic(), 0, 0, 0.0, 0))

    def done(self, number: int, began_s: float, size: int, exact: bool) -> None:
        """Thread `number` has ended an operation on `size` bytes that began then."""
        now, row = time.monotonic(), self.read(number)
        longest = max(row.longest_s, now - began_s)
        after = Row(now, row.operations + 1, row.bytes + size, longest, row.wrong + (not exact))
        self.write(number, after)

    def read(self, number: int) -> Row:
        """The row of one thread."""
        return Row(*_ROW.unpack_from(self._memory, number * _ROW.size))

    def read_all(self) -> list[Row]:
        """All rows."""
        return [self.read(number) for number in range(self.rows)]

    def write(self, number: int, row: Row) -> None:
        """Put a row in place of what was there."""
        values = (row.at_s, row.operations, row.bytes, row.longest_s, row.wrong)
        # In one copy: pack_into() writes zeros first, and the watcher may look just then.
        at = number * _ROW.size
        self._memory[at : at + _ROW.size] = _ROW.pack(*values)
