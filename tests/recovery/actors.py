"""Processes that use a mount in every way there is while its own processes are killed.

    python -m tests.recovery.actors KIND MOUNT PLAIN BOARD ROWS ROW

Each compares all it gets with the plain directory, notes every operation on its row of the board,
prints what went wrong, one line each, and ends when the board says so. KIND is one of `ACTORS`.
Processes of their own, since a page fault holds the interpreter's lock while it waits.
"""

from __future__ import annotations

import faulthandler
import hashlib
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.stress.board import Board, Row
from tests.stress.readers import Reader

MANY = "many"
"""The folder of small files that is listed; what it holds is the file's own name."""

PULSE_FILE = "pulse.bin"
PAGE = 4096


class Actor:
    """One actor: where it looks, what is right, and its row. `once` does it once."""

    def __init__(self, mount: Path, plain: Path, board: Board, row: int) -> None:
        self._mount = mount
        self._plain = plain
        self._board = board
        self._row = row
        self._chance = random.Random(row)

    def _done(self, began_s: float, size: int, exact: bool, what: object = "") -> None:
        self._board.done(self._row, began_s, size, exact)
        if not exact:
            print(f"wrong: {what}", flush=True)


class Bytes(Actor):
    """Reads and page faults, in order and at random, with and without the page cache."""

    def __init__(self, mount: Path, plain: Path, board: Board, row: int) -> None:
        super().__init__(mount, plain, board, row)
        self._reader = Reader(mount, plain, board, row, only="*.bin")

    def once(self) -> None:
        """Read some file in some way."""
        self._reader.once()


class Names(Actor):
    """Listings that are read slowly, sizes, contents of small files, names that are not there."""

    def once(self) -> None:
        """List all of it, with a look at single names in between."""
        want = sorted(path.name for path in (self._plain / MANY).iterdir())
        got = []
        began = time.monotonic()
        with os.scandir(self._mount / MANY) as entries:
            for number, entry in enumerate(entries):
                got.append(entry.name)
                if number % 100 == 0:
                    self._look(self._chance.choice(want))
        self._done(began, 0, sorted(got) == want, "a listing lost or doubled names")

    def _look(self, name: str) -> None:
        began = time.monotonic()
        size = (self._mount / MANY / name).stat().st_size
        text = (self._mount / MANY / name).read_text()
        absent = (self._mount / MANY / f"no-{name}").exists()
        is_right = (size, text, absent) == (len(name), name, False)
        self._done(began, size, is_right, f"{name}: {size} bytes, {text!r}")


class Loads(Actor):
    """Loads of the model, by safetensors' mmap and through the hints' socket, in turn."""

    def __init__(self, mount: Path, plain: Path, board: Board, row: int) -> None:
        super().__init__(mount, plain, board, row)
        self._want = self._digests(plain, hinted=False)
        self._hinted = False

    def once(self) -> None:
        """Load all tensors."""
        began = time.monotonic()
        self._hinted = not self._hinted
        got = self._digests(self._mount, self._hinted)
        self._done(began, 0, got == self._want, f"tensors differ, hinted {self._hinted}")

    def _digests(self, directory: Path, hinted: bool) -> dict[str, bytes]:
        import torch
        from safetensors.torch import load_file

        from loaderhint.torch import iterate_files

        shards = sorted(directory.glob("*.safetensors"))
        if hinted:
            tensors = dict(iterate_files(shards))
        else:
            tensors = {name: t for shard in shards for name, t in load_file(shard).items()}
        return {
            name: hashlib.blake2b(tensor.contiguous().view(torch.uint8).numpy()).digest()
            for name, tensor in tensors.items()
        }


class Pulse(Actor):
    """Small reads past the page cache, without a break: whoever they wait for is not there.

    It prints every one that takes longer than `NOTED_S`: `pause BEGAN ENDED`, monotonic.
    """

    NOTED_S = 0.05

    def __init__(self, mount: Path, plain: Path, board: Board, row: int) -> None:
        super().__init__(mount, plain, board, row)
        self._bytes = (plain / PULSE_FILE).read_bytes()
        self._buffer = mmap.mmap(-1, PAGE)
        self._fd = os.open(mount / PULSE_FILE, os.O_RDONLY | os.O_DIRECT)

    def once(self) -> None:
        """Read a page."""
        at = self._chance.randrange(len(self._bytes) // PAGE) * PAGE
        began = time.monotonic()
        got = os.preadv(self._fd, [self._buffer], at)
        exact = self._buffer[:got] == self._bytes[at : at + PAGE]
        self._done(began, got, exact, f"{got} bytes of page {at}")
        ended = time.monotonic()
        if ended - began > self.NOTED_S:
            print(f"pause {began} {ended}", flush=True)
        time.sleep(0.005)  # to leave the cores to the others


ACTORS: dict[str, Callable[[Path, Path, Board, int], Bytes | Names | Loads | Pulse]] = {
    "bytes": Bytes,
    "names": Names,
    "loads": Loads,
    "pulse": Pulse,
}


def stop(board: Board, row: int) -> None:
    """Have all actors of a board end: `row` is theirs, the last one."""
    board.write(row, Row(time.monotonic(), 1, 0, 0.0, 0))


def main(kind: str, mount: str, plain: str, path: str, rows: str, row: str) -> None:
    """Act until told to stop; on SIGUSR1 write down where every thread is."""
    faulthandler.register(signal.SIGUSR1)
    board = Board(Path(path), int(rows))
    actor = ACTORS[kind](Path(mount), Path(plain), board, int(row))
    while not board.read(board.rows - 1).operations:
        began = time.monotonic()
        try:
            actor.once()
        except OSError as error:
            board.done(int(row), began, 0, exact=True)
            print(f"error: {kind}: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
