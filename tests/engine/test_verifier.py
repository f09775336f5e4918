"""Checked reads inside a worker."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.engine.verifier import Part, Report, Verifier
from fusefs.errors import AccessDenied, ChecksumMismatch, StoreUnavailable, Unsupported
from fusefs.objects import Checksums, Extent, ObjectId
from fusefs.policy.crc import CRC32
from fusefs.store.checksums import NOTE, PIECE_BYTES, Finder, NoteRow, encode_note
from tests.harness.simulated import SimulatedStore

MIB = 1 << 20
SIZE = 5 * MIB + 321
DATA = random.Random(3).randbytes(SIZE)
WHOLE = Extent(0, SIZE)
KEY = "models/one/a.bin"


class KnowingStore(SimulatedStore):
    """Has checksums of its own, of pieces that end at `stops`."""

    def __init__(self, stops: list[int]) -> None:
        super().__init__()
        self.stops = stops
        self.asked = 0

    def checksums(self, id: ObjectId) -> Checksums | None:
        self.asked += 1
        self._begin("checksums", id.key)
        data = self.data(id.key)
        starts = [0, *self.stops[:-1]]
        values = [zlib.crc32(data[a:b]) for a, b in zip(starts, self.stops, strict=True)]
        return Checksums(CRC32, self.stops, values)


class SummingStore(SimulatedStore):
    """Sends a sum with each range, as Azure does, unless it is one that does not."""

    sums = True

    def read_summed_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        if not self.sums:
            raise Unsupported("no sums here")
        self.read_into(id, extent, buffer, landed)


def note_of(store: SimulatedStore, data: bytes = DATA, folder: str = "models/one/") -> bytes:
    """The note that push would write beside the object."""
    crcs = b"".join(
        zlib.crc32(data[at : at + PIECE_BYTES]).to_bytes(4)
        for at in range(0, len(data), PIECE_BYTES)
    )
    name = KEY.removeprefix(folder)
    return encode_note({name: NoteRow(len(data), store.head(KEY).id.etag, crcs)})


def make_verifier(store: SimulatedStore, required: bool = False, prefix: str = "") -> Verifier:
    return Verifier(store, Finder(store, prefix), MIB, required)


def read(
    verifier: Verifier, id: ObjectId, extent: Extent = WHOLE
) -> tuple[bytes, list[int], Report]:
    """Read: the bytes, what landed when, and all reports as one."""
    buffer = bytearray(extent.size)
    landed: list[int] = []
    reports: list[Report] = []

    def told(size: int, report: Report) -> None:
        landed.append(size)
        reports.append(report)

    verifier.read_into(id, extent, memoryview(buffer), told)
    whole = Report()
    for report in reports:
        whole = whole.joined(report)
    return bytes(buffer), landed, whole


def test_blocks_are_checked_one_by_one() -> None:
    """With push's note each MiB is compared before it is told of."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    store.put("models/one/" + NOTE, note_of(store))
    data, landed, report = read(make_verifier(store), id)
    assert data == DATA
    assert landed == [MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, SIZE, SIZE]
    assert report == Report(SIZE, 0, CRC32, ())


def test_a_wrong_byte_is_not_told_of() -> None:
    """What comes before it lands; the block with it does not, and the read fails by name."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    wrong = bytearray(DATA)
    wrong[2 * MIB + 5] ^= 1
    store.put("models/one/" + NOTE, note_of(store, bytes(wrong)))
    verifier = make_verifier(store)
    landed: list[int] = []
    with pytest.raises(ChecksumMismatch, match=r"a\.bin.* wrong bytes between 2097152 and 3145728"):
        verifier.read_into(
            id, Extent(0, SIZE), memoryview(bytearray(SIZE)), lambda n, _: landed.append(n)
        )
    assert landed == [MIB, 2 * MIB]


def test_notes_are_found_above_the_file_and_not_above_the_source() -> None:
    """A note that lies in a folder above speaks of the file, up to what is mounted."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    store.put("models/" + NOTE, note_of(store, folder="models/"))
    for prefix, missing in (("", 0), ("models/", 0), ("models/one/", SIZE)):
        assert read(make_verifier(store, prefix=prefix), id)[2].missing == missing
    keys = [request[1] for request in store.requests if request[0] == "head"]
    assert "models/one/" + NOTE in keys


def test_a_note_of_another_version_says_nothing() -> None:
    """An object that was overwritten since the push is read, unchecked."""
    store = SimulatedStore()
    store.put(KEY, DATA)
    store.put("models/one/" + NOTE, note_of(store))
    id = store.put(KEY, DATA[::-1]).id
    data, _, report = read(make_verifier(store), id)
    assert (data, report) == (DATA[::-1], Report(missing=SIZE))


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b'{"v": 9}',
        b'{"v":1,"crc":"crc32","piece_bytes":1048576,"files":[]}',
        b"\xff",
    ],
)
def test_a_note_that_is_none_is_none(note: bytes) -> None:
    """Whatever lies there, files are read; they have no checksums then."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    store.put("models/one/" + NOTE, note)
    assert read(make_verifier(store), id)[2] == Report(missing=SIZE)


def test_refused_notes_and_stores_that_are_away() -> None:
    """Who may not read notes reads files; a store that is away is asked again, by the fetcher."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    verifier = make_verifier(store)
    store.fail_next(StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        read(verifier, id)
    store.fail_next(AccessDenied("not for you"))
    assert read(verifier, id)[2] == Report(missing=SIZE)


def test_required_checksums() -> None:
    """Without one the read is refused, in a sentence that says what to do; with one it is not."""
    store = SimulatedStore()
    id = store.put(KEY, DATA).id
    with pytest.raises(Unsupported, match=r"has no checksum.*push it with fusefs push"):
        read(make_verifier(store, required=True), id)
    store.put("models/one/" + NOTE, note_of(store))
    assert read(make_verifier(store, required=True), id)[2].verified == SIZE


def test_a_store_that_sums_ranges() -> None:
    """Its reads count as verified; one that turns out to send no sums is read without."""
    store = SummingStore()
    id = store.put(KEY, DATA).id
    assert read(make_verifier(store), id)[2] == Report(verified=SIZE)
    store.sums = False
    assert read(make_verifier(store), id)[2] == Report(missing=SIZE)
    with pytest.raises(Unsupported, match="has no checksum"):
        read(make_verifier(store, required=True), id)


def test_parts_of_an_object_with_one_crc() -> None:
    """What cannot be compared in one range is reported block by block; the note comes first."""
    store = KnowingStore([SIZE])
    id = store.put(KEY, DATA).id
    verifier = make_verifier(store)
    _, _, first = read(verifier, id, Extent(0, 2 * MIB))
    _, landed, second = read(verifier, id, Extent(2 * MIB, SIZE))
    assert landed == [MIB, 2 * MIB, 3 * MIB, SIZE - 2 * MIB, SIZE - 2 * MIB]
    whole = zlib.crc32(DATA)
    starts = range(0, SIZE, MIB)
    assert first.parts + second.parts == tuple(
        Part(
            Extent(0, SIZE),
            whole,
            Extent(at, min(at + MIB, SIZE)),
            zlib.crc32(DATA[at : at + MIB]),
        )
        for at in starts
    )
    assert (first.verified, second.verified, store.asked) == (0, 0, 1)
    assert Report.from_wire(second.to_wire()) == second
    assert read(verifier, id)[2].verified == SIZE


def test_parts_that_end_within_blocks() -> None:
    """An upload's parts need not be blocks: what lands, and what is reported, ends with one."""
    stops = [MIB + 500_000, 2 * MIB + 1, 4 * MIB + 77, SIZE]
    store = KnowingStore(stops)
    id = store.put(KEY, DATA).id
    verifier = make_verifier(store)
    for extent in (Extent(0, 3 * MIB), Extent(3 * MIB, SIZE), Extent(MIB, 4 * MIB)):
        data, landed, report = read(verifier, id, extent)
        assert data == DATA[extent.start : extent.stop]
        assert all(n % MIB == 0 or n == extent.size for n in landed)
        inside = [
            b - a
            for a, b in zip([0, *stops[:-1]], stops, strict=True)
            if extent.start <= a and b <= extent.stop
        ]
        assert report.verified == sum(inside)
        assert report.verified + sum(part.extent.size for part in report.parts) == extent.size
        for part in report.parts:
            assert part.crc == zlib.crc32(DATA[part.extent.start : part.extent.stop])
            assert part.extent.start // MIB == (part.extent.stop - 1) // MIB


def test_threads_ask_once() -> None:
    """However many threads begin to read a file at once, its checksums are asked for once."""
    store = KnowingStore([SIZE])
    id = store.put(KEY, DATA).id
    finder = Finder(store, "")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(finder.find, [id] * 64))
    assert store.asked == 1
    assert all(sums is found[0] for sums in found)
