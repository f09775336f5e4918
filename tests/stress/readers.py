"""One process of the stress: threads that read in every way there is, and compare every byte.

    python -m tests.stress.readers MOUNT PLAIN BOARD ROWS FIRST THREADS SECONDS

A process of its own with few threads: a page fault holds the interpreter's lock while it waits.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.stress.board import Board

PAGE = 4096
MIB = 1 << 20
TOUCHES = 48
"""Pages touched of one mapping, a stride apart, before it is let go."""

DIRECT_BYTES_MAX = 100 * MIB
"""Files that somebody has open with O_DIRECT are not pushed: the large ones seldom are."""


class Reader:
    """One thread of the crowd, and the ways it reads; each read goes to its row of the board."""

    def __init__(
        self, mount: Path, plain: Path, board: Board, number: int, only: str = "*"
    ) -> None:
        self._mount = mount
        self._plain = plain
        self._board = board
        self._number = number
        self._chance = random.Random(number)
        self._names = sorted(path.name for path in plain.glob(only))
        self._buffer = mmap.mmap(-1, MIB)  # aligned, as O_DIRECT wants it
        self._ways: list[tuple[int, Callable[[Path, mmap.mmap], None]]] = [
            (24, self.fault_in_order),
            (16, self.fault_at_random),
            (24, self.read_in_order),
            (16, self.read_at_random),
            (8, self.read_direct),
            (4, self.load),
            (4, self.let_go),
        ]

    def once(self) -> None:
        """Read some file in some way."""
        name = self._chance.choice(self._names)
        with (self._plain / name).open("rb") as file:
            want = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with want:
            weights, ways = zip(*self._ways, strict=True)
            self._chance.choices(ways, weights)[0](self._mount / name, want)

    def fault_in_order(self, path: Path, want: mmap.mmap) -> None:
        """Page faults forwards or backwards, with madvise in between."""
        stride = self._chance.choice([1, 1, 7, 64, 256]) * PAGE
        begin = self._page(len(want))
        pages = [at for i in range(TOUCHES) if (at := begin + i * stride) < len(want)]
        if self._chance.random() < 0.5:
            pages.reverse()
        self._fault(path, want, pages, PAGE)

    def fault_at_random(self, path: Path, want: mmap.mmap) -> None:
        """Page faults anywhere."""
        self._fault(path, want, [self._page(len(want)) for _ in range(TOUCHES)], PAGE)

    def load(self, path: Path, want: mmap.mmap) -> None:
        """The whole file through a mapping, as a loader does."""
        self._fault(path, want, range(0, len(want), MIB), MIB)

    def read_in_order(self, path: Path, want: mmap.mmap) -> None:
        """A run of reads through the page cache."""
        size = self._chance.choice([PAGE, 128 << 10, MIB])
        begin = self._chance.randrange(len(want))
        self._read(path, want, range(begin, min(len(want), begin + 8 * size), size), size)

    def read_at_random(self, path: Path, want: mmap.mmap) -> None:
        """Reads anywhere, of any length, past the end too."""
        offsets = [self._chance.randrange(len(want) + 1000) for _ in range(8)]
        self._read(path, want, offsets, self._chance.randrange(1, MIB))

    def read_direct(self, path: Path, want: mmap.mmap) -> None:
        """Reads past the page cache."""
        if len(want) > DIRECT_BYTES_MAX and self._chance.random() < 0.95:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(4):
                at, size = self._page(len(want)), self._chance.choice([PAGE, 256 << 10, MIB])
                began = time.monotonic()
                got = os.preadv(fd, [memoryview(self._buffer)[:size]], at)
                self._done(began, self._buffer[:got], want[at : at + size])
        finally:
            os.close(fd)

    def let_go(self, path: Path, want: mmap.mmap) -> None:
        """Ask the kernel to drop a part, or to bring it, and read its begin."""
        fd = os.open(path, os.O_RDONLY)
        try:
            at, size = self._page(len(want)), self._chance.choice([MIB, 4 * MIB, 16 * MIB])
            advice = self._chance.choice([os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED])
            began = time.monotonic()
            os.posix_fadvise(fd, at, size, advice)
            self._done(began, os.pread(fd, PAGE, at), want[at : at + PAGE])
        finally:
            os.close(fd)

    def _fault(self, path: Path, want: mmap.mmap, offsets: Iterable[int], size: int) -> None:
        with path.open("rb", buffering=0) as file:
            ours = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with ours:
            for at in offsets:
                began = time.monotonic()
                if self._chance.random() < 0.02:
                    advice = self._chance.choice([mmap.MADV_WILLNEED, mmap.MADV_DONTNEED])
                    start = at // PAGE * PAGE
                    ours.madvise(advice, start, min(4 * MIB, len(ours) - start))
                self._done(began, ours[at : at + size], want[at : at + size])

    def _read(self, path: Path, want: mmap.mmap, offsets: Iterable[int], size: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            for at in offsets:
                began = time.monotonic()
                self._done(began, os.pread(fd, size, at), want[at : at + size])
        finally:
            os.close(fd)

    def _done(self, began_s: float, got: bytes, want: bytes) -> None:
        self._board.done(self._number, began_s, len(got), got == want)

    def _page(self, size: int) -> int:
        return self._chance.randrange(-(-size // PAGE)) * PAGE


def main(mount: str, plain: str, path: str, *numbers: str) -> None:
    """Read until time is up."""
    rows, first, threads, seconds = map(int, numbers)
    board = Board(Path(path), rows)
    until = time.monotonic() + seconds

    def serve(number: int) -> None:
        reader = Reader(Path(mount), Path(plain), board, number)
        while time.monotonic() < until:
            reader.once()

    crew = [threading.Thread(target=serve, args=(first + i,)) for i in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
