"""The ledger: however writers come, fail and give back, a part is whole when its bytes are here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loaderhint.header import TensorInfo
from loaderhint.ledger import Ledger, Piece, Read
from loaderhint.plan import Part

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6)
WRITES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(0, 20), st.booleans()), max_size=30
)


class Bytes:
    """A sink of bytearrays."""

    def begin(self, part: Part) -> bytearray:
        return bytearray(part.size_bytes)

    def fill(self, pieces: Sequence[Piece], read: Read) -> None:
        read([memoryview(piece.memory)[piece.offset :][: piece.size_bytes] for piece in pieces])


def parts_of(sizes: Sequence[int], files: int = 2) -> list[Part]:
    """Parts of these sizes in each file, the files in turn, with gaps of a byte."""
    parts = []
    for file in range(files):
        at = 1
        for number, size in enumerate(sizes):
            info = TensorInfo(f"{file}.{number}", "U8", (size,), at, at + size)
            parts.append(Part(file, info, at, at + size, (size,)))
            at += size + number % 2
    return parts


def content(file: int, offset: int) -> int:
    """The byte at a place."""
    return (file * 101 + offset * 7) % 251


def write(ledger: Ledger, file: int, start: int, stop: int, trusted: bool) -> None:
    """Claim, write, and say done; what is not to be trusted is noise, and given back."""
    for run in ledger.claim(file, start, stop):
        at = run[0].start
        assert [one.stop for one in run[:-1]] == [one.start for one in run[1:]]

        def read(buffers: list[memoryview], at: int = at) -> None:
            for buffer in buffers:
                for number in range(len(buffer)):
                    buffer[number] = content(file, at) if trusted else 255
                    at += 1

        ledger.fill(run, read)
        if trusted:
            ledger.done(run)
        else:
            ledger.give_back(run)


@given(SIZES, WRITES, st.booleans())
def test_any_history_of_writers_gives_the_bytes(
    sizes: list[int], writes: list[tuple[int, int, int, bool]], ordered: bool
) -> None:
    """Overlapping, repeated and failed writes, then the missing: every part once, its own bytes."""
    parts = parts_of(sizes)
    ledger = Ledger(parts, Bytes(), ordered, 1 << 30)
    for file, start, size, trusted in writes:
        write(ledger, file, start, start + size, trusted)
    missing = list(ledger.missing())
    assert all(start < stop for _, start, stop in missing)
    for file, start, stop in missing:
        write(ledger, file, start, stop, True)
    assert list(ledger.missing()) == []
    taken: list[tuple[Part, Any]] = []
    while (one := ledger.take()) is not None:
        taken.append(one)
    for part, memory in taken:
        assert list(memory) == [content(part.file, at) for at in range(part.start, part.stop)]
    names = [part.name for part, _ in taken]
    assert sorted(names) == sorted(part.name for part in parts)
    if ordered:
        assert names == [part.name for part in parts]


def test_what_is_early_never_blocks_what_it_waits_for() -> None:
    """In plan order, a limit full of later parts still lets the first one be written."""
    ledger = Ledger(parts_of([5, 5, 5], files=1), Bytes(), True, 6)
    write(ledger, 0, 6, 17, True)
    assert ledger.wait_room()
    assert ledger.wait_turn()
    turns: list[bool] = []
    other = threading.Thread(target=lambda: turns.append(ledger.wait_turn()))
    other.start()
    other.join(0.1)
    assert other.is_alive()
    write(ledger, 0, 0, 6, True)
    ledger.leave()
    for _ in range(3):
        assert ledger.take() is not None
    other.join(5)
    assert turns == [True]
    assert ledger.take() is None
    ledger.stop()
    assert not ledger.wait_turn()
    assert not ledger.wait_room()
