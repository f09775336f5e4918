"""The journal of names against a dictionary: whatever dies in the middle of writing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.objects import ObjectId, ObjectMeta
from fusefs.tree.inodes import Inodes
from fusefs.tree.journal import PLACE_BYTES, Journal, Row
from tests.conftest import ExpectedWarnings

MEMORY_BYTES = 1 << 16


class Died(Exception):
    """The process was killed in the middle of a write."""


class Mortal:
    """Memory whose writer dies after so many bytes: words of eight bytes whole or not at all."""

    def __init__(self, data: bytearray, lives_bytes: int) -> None:
        self._data = memoryview(data)
        self._lives_bytes = lives_bytes

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, at: slice) -> memoryview:
        return self._data[at]

    def __setitem__(self, at: slice, data: bytes) -> None:
        is_word = len(data) == 8 and at.start % 8 == 0
        fits = self._lives_bytes >= len(data)
        written = len(data) if fits else 0 if is_word else max(0, self._lives_bytes)
        self._data[at.start : at.start + written] = data[:written]
        self._lives_bytes -= len(data)
        if not fits:
            raise Died


Told = dict[int, tuple[Row, int]]
"""What the kernel was told, by inode: the row and how often."""

ROWS = st.builds(
    Row,
    inode=st.integers(1024, 1040),
    parent=st.just(1),
    name=st.binary(min_size=1, max_size=80),
    key=st.text(min_size=1, max_size=120),
    etag=st.one_of(st.none(), st.text(max_size=40)),
    size=st.integers(0, (1 << 64) - 1),
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
)
STEPS = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 3), ROWS), max_size=40)


class Writer:
    """Does with a journal what `Inodes` does, and keeps what it was about to tell the kernel."""

    def __init__(self, journal: Journal, told: Told) -> None:
        self._journal = journal
        self._told = told
        self._places: dict[int, int] = {}
        self.doing: tuple[int, int] | None = None

    def load(self) -> None:
        self._places = {row.inode: place for place, row, _ in self._journal.load()}

    def do(self, inode: int, lookups: int, row: Row) -> None:
        """Make the count of this inode `lookups`."""
        self.doing = inode, lookups
        row = row._replace(inode=inode)
        if inode in self._places:
            self._journal.set_lookups(self._places[inode], lookups)
            if not lookups:
                del self._places[inode]
        elif lookups:
            self._places[inode] = self._journal.add(row, lookups)
        if lookups:
            self._told[inode] = (self._told[inode][0] if inode in self._told else row, lookups)
        else:
            self._told.pop(inode, None)
        self.doing = None


@settings(max_examples=300)
@given(lives=st.lists(st.tuples(STEPS, st.integers(0, 4000)), min_size=1, max_size=4))
def test_every_record_outlives_any_death(
    lives: list[tuple[list[tuple[int, int, Row]], int]],
) -> None:
    """Killed after any byte, again and again: what the kernel was told is there, as it was told."""
    data = bytearray(MEMORY_BYTES)
    told: Told = {}
    for steps, lives_bytes in lives:
        writer = Writer(Journal(Mortal(data, lives_bytes)), told)
        writer.load()
        try:
            for number, lookups, row in steps:
                writer.do(1024 + number, lookups, row)
        except Died:
            pass  # the subject of this test
        found = {row.inode: (row, lookups) for _, row, lookups in Journal(memoryview(data)).load()}
        doing = writer.doing
        if doing is not None:  # it may be either way, but for a count that only grew, or a new row
            inode, lookups = doing
            got = found.pop(inode, None)
            before = told.pop(inode, None)
            count = got[1] if got else 0
            assert count in (lookups, before[1] if before else 0)
            if got and before:
                assert got[0] == before[0]
            if got:
                told[inode] = found[inode] = got
        assert found == told


@given(steps=STEPS)
def test_places_are_used_again(steps: list[tuple[int, int, Row]]) -> None:
    """Names that come and go take the memory of those that were there at once, not of all."""
    data = bytearray(MEMORY_BYTES)
    writer = Writer(Journal(memoryview(data)), {})
    writer.load()
    for _ in range(20):
        for number, _, row in steps:
            writer.do(1024 + number, 1, row)
        for number, _, row in steps:
            writer.do(1024 + number, 0, row)
    row_max = 24 + 80 + 480 + 160 + 64 + PLACE_BYTES
    assert sum(1 for byte in data if byte) <= 17 * 2 * row_max


def test_a_full_journal_says_so_once_and_goes_on(expect_warning: ExpectedWarnings) -> None:
    """Names beyond its room are kept by the daemon alone; those within are kept."""
    expect_warning("the journal is full")
    journal = Journal(memoryview(bytearray(4 * PLACE_BYTES)))
    row = Row(1024, 1, b"n", "n", "e", 1, 1)
    places = [journal.add(row._replace(inode=1024 + n), 1) for n in range(9)]
    assert [bool(place) for place in places] == [True, True, False, *[False] * 6]
    assert len(Journal(memoryview(bytearray(4 * PLACE_BYTES))).load()) == 0


def test_a_damaged_record_is_found_and_left_out(expect_warning: ExpectedWarnings) -> None:
    """A check sum stands over each; its place is free again, and the others are read."""
    expect_warning("is damaged")
    data = bytearray(MEMORY_BYTES)
    journal = Journal(memoryview(data))
    for number in range(3):
        journal.add(Row(1024 + number, 1, b"name", f"key-{number}", "e", 1, 1), 1)
    data[data.index(b"key-1")] ^= 1
    found = Journal(memoryview(data)).load()
    assert [row.key for _, row, _ in found] == ["key-0", "key-2"]


def meta(key: str, etag: str) -> ObjectMeta:
    return ObjectMeta(ObjectId(key, etag), 10, 20)


def open_(data: bytearray) -> Inodes:
    inodes = Inodes("p/", Journal(memoryview(data)))
    inodes.restore()
    return inodes


def forget_all(inodes: Inodes, inode: int) -> None:
    inodes.forget(inode, 3)


def close_after_forget(inodes: Inodes, inode: int) -> None:
    inodes.acquire(inode)
    inodes.forget(inode, 3)
    inodes.release(inode)


def test_inodes_know_again_what_the_kernel_knows() -> None:
    """Files, directories, their counts; a second life goes on counting where the first stopped."""
    data = bytearray(MEMORY_BYTES)
    first = open_(data)
    file = first.file(1, b"a", meta("p/a", "v1"))
    folder = first.directory(1, b"d", "p/d/")
    inner = first.file(folder.inode, b"\xff", meta("p/d/\udcff", ""))
    for entry, count in ((file, 3), (folder, 1), (inner, 2)):
        first.remember(entry, count)
    first.forget(inner.inode, 1)

    second = open_(data)
    assert len(second) == 4
    for entry in (file, folder, inner):
        again = second.get(entry.inode)
        assert (again.name, again.key, again.parent) == (entry.name, entry.key, entry.parent)
        assert (again.meta, again.lookups, again.opens) == (entry.meta, entry.lookups, 0)
    assert second.file(1, b"a", meta("p/a", "v1")) is second.get(file.inode)
    second.forget(file.inode, 3)
    second.forget(inner.inode, 1)
    assert {row.key for _, row, _ in Journal(memoryview(data)).load()} == {"p/d/"}


@pytest.mark.parametrize("end", [forget_all, close_after_forget])
def test_what_the_kernel_forgot_is_not_restored(end: Callable[[Inodes, int], None]) -> None:
    """Also if it was open while it was forgotten."""
    data = bytearray(MEMORY_BYTES)
    inodes = open_(data)
    entry = inodes.file(1, b"a", meta("p/a", "v1"))
    inodes.remember(entry, 3)
    end(inodes, entry.inode)
    assert len(open_(data)) == 1
