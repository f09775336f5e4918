"""What pull makes of a bucket, what it refuses, and how it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fusefs.errors import CorruptData, FusefsError, ObjectChanged, ObjectNotFound, StoreUnavailable
from fusefs.objects import Extent, ListPage, ObjectId
from fusefs.transfer.crew import Crew
from fusefs.transfer.held import HeldFile
from fusefs.transfer.progress import TransferCut
from fusefs.transfer.pull import Pull
from fusefs.transfer.remote import PIECE_BYTES
from tests.harness.simulated import SimulatedStore
from tests.transfer.folders import MODEL, PREFIX, SOURCE, Bucket, Watcher, contents, fill

LARGE = {"big.bin": 3 * PIECE_BYTES + 5, "small.json": 20}


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """A bucket with a model that was pushed."""
    made = Bucket()
    made.push(fill(tmp_path / "model", MODEL))
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to; not there yet."""
    return tmp_path / "target"


def plain_bucket(names: dict[str, bytes]) -> Bucket:
    """A bucket that somebody else filled."""
    made = Bucket()
    for name, data in names.items():
        made.store.put(PREFIX + name, data)
    return made


def tree(folder: Path) -> set[str]:
    """Every name below a folder, of files and folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_model_becomes_a_folder(bucket: Bucket, target: Path, tmp_path: Path) -> None:
    """What was pushed comes back byte for byte, and nothing of ours stays."""
    report = bucket.pull(target)
    assert contents(target) == contents(tmp_path / "model")
    assert tree(target) == tree(tmp_path / "model")
    assert (report.files_moved, report.bytes_moved) == (len(MODEL), sum(MODEL.values()))


def test_a_second_pull_fetches_nothing(bucket: Bucket, target: Path) -> None:
    """Equal files are left: no byte is read but the manifest's."""
    bucket.pull(target)
    bucket.store.requests.clear()
    report = bucket.pull(target)
    assert (report.files_moved, report.bytes_there) == (0, sum(MODEL.values()))
    reads = {request[1] for request in bucket.store.requests if request[0] == "read"}
    assert reads == {f"{PREFIX}.fusefs/manifest.json"}


def test_without_a_manifest_size_and_time_decide(target: Path) -> None:
    """A bucket that others filled is pulled, and again, by the times that pull gave its files."""
    bucket = plain_bucket({"a.bin": b"abc", "sub/b.bin": b"", "sub/": b""})
    assert bucket.pull(target).files_moved == 2
    assert contents(target) == {"a.bin": b"abc", "sub/b.bin": b""}
    assert bucket.pull(target).files_moved == 0
    bucket.store.put(f"{PREFIX}a.bin", b"xyz")
    with pytest.raises(FusefsError, match=r"a\.bin"):
        bucket.pull(target)
    assert bucket.pull(target, force=True).moved == ("a.bin",)
    assert (target / "a.bin").read_bytes() == b"xyz"


def test_different_files_are_refused_without_force(bucket: Bucket, target: Path) -> None:
    """A file of other bytes, even of equal size and time, is named and kept."""
    bucket.pull(target)
    config = target / "config.json"
    before = config.stat()
    config.write_bytes(b"x" * before.st_size)
    os.utime(config, ns=(before.st_mtime_ns, before.st_mtime_ns))
    with pytest.raises(FusefsError, match=r"config\.json.*--force"):
        bucket.pull(target)
    assert config.read_bytes() == b"x" * before.st_size
    assert bucket.pull(target, force=True).moved == ("config.json",)
    assert config.read_bytes() == bucket.read("config.json")


def test_a_dry_run_writes_nothing(bucket: Bucket, target: Path) -> None:
    """A dry run tells what would come, and makes not even the folder."""
    report = bucket.pull(target, dry_run=True)
    assert set(report.moved) == set(MODEL)
    assert not target.exists()


HOSTILE = (
    "../outside",
    "/absolute",
    "a/../../outside",
    "..",
    ".",
    "double//slash",
    "nul\0name",
    "x" * 256,
    ".fusefs-pull/0.part",
    "sub/.fusefs/manifest.json",
)


def test_no_key_leaves_the_folder(tmp_path: Path, target: Path) -> None:
    """Keys that no file can have are left out and reported; the rest is pulled."""
    bucket = plain_bucket(dict.fromkeys([*HOSTILE, "good", "sub/good"], b"x"))
    before = tree(tmp_path)
    report = bucket.pull(target)
    assert contents(target) == {"good": b"x", "sub/good": b"x"}
    new = {"target", "target/good", "target/sub", "target/sub/good"}
    assert tree(tmp_path) - before == new
    assert len(report.left_out) == len(HOSTILE) - 1  # a .fusefs is nobody's file


def test_a_folder_wins_over_a_file_of_its_name(target: Path) -> None:
    """As in a mount, a key that is also a folder is left out, and that is said."""
    bucket = plain_bucket({"a": b"file", "a/b": b"below"})
    assert bucket.pull(target).left_out == ("a (a folder has the same name)",)
    assert contents(target) == {"a/b": b"below"}


def test_no_symlink_leads_out_of_the_folder(target: Path, tmp_path: Path) -> None:
    """A symlink in the way is refused where a folder should be, and replaced where a file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(FusefsError, match="symlink"):
        plain_bucket({"sub/file": b"theirs"}).pull(target, force=True)
    (target / "sub").unlink()
    (target / "file").symlink_to(outside / "file")
    plain_bucket({"file": b"theirs"}).pull(target, force=True)
    assert (target / "file").read_bytes() == b"theirs"
    assert (outside / "file").read_bytes() == b"mine"


def test_a_folder_is_never_replaced(target: Path) -> None:
    """Where a folder has the name of an object, no force helps."""
    (target / "name").mkdir(parents=True)
    with pytest.raises(FusefsError, match="take it away"):
        plain_bucket({"name": b"x"}).pull(target, force=True)


class Vast(SimulatedStore):
    """Its objects are larger than any disk."""

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`."""
        page = super().list_page(prefix, token)
        return replace(page, objects=tuple(replace(m, size=1 << 60) for m in page.objects))


class Interfering(SimulatedStore):
    """Calls `before_read` with the number of each read of a piece before it is answered."""

    before_read: Callable[[int], None]
    reads = 0

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        if extent.size == PIECE_BYTES:
            number, self.reads = self.reads, self.reads + 1
            self.before_read(number)
        super().read_into(id, extent, buffer, landed)


def interfered(before_read: Callable[[int], None]) -> tuple[Bucket, bytes]:
    """A bucket with one large object and one small, and the bytes of the large one."""
    bucket = Bucket()
    store = Interfering()
    store.before_read = before_read
    bucket.store = store
    data = os.urandom(LARGE["big.bin"])
    store.put(f"{PREFIX}big.bin", data)
    store.put(f"{PREFIX}small.json", b"{}")
    return bucket, data


def fail_third(number: int) -> None:
    """Fails at the third piece, for good."""
    if number == 2:
        raise ObjectNotFound("the bucket went away")


def test_a_pull_that_was_cut_goes_on(target: Path) -> None:
    """Pieces that are there are not fetched again, and nothing half-done has its name before."""
    bucket, data = interfered(fail_third)
    with pytest.raises(TransferCut):
        bucket.pull(target, jobs=1)
    assert {path.name for path in target.iterdir()} == {".fusefs-pull"}
    report = bucket.pull(target)
    assert report.bytes_there == 2 * PIECE_BYTES
    assert report.bytes_moved == len(data) + 2 - 2 * PIECE_BYTES
    assert contents(target) == {"big.bin": data, "small.json": b"{}"}
    assert not (target / ".fusefs-pull").exists()


def test_a_version_that_came_meanwhile_starts_anew(target: Path) -> None:
    """Pieces of another version are worth nothing: all of the new one is fetched."""
    bucket, data = interfered(fail_third)
    with pytest.raises(TransferCut):
        bucket.pull(target, jobs=1)
    bucket.store.put(f"{PREFIX}big.bin", data[::-1])
    assert bucket.pull(target).bytes_there == 0
    assert (target / "big.bin").read_bytes() == data[::-1]


def test_a_torn_record_is_not_believed(target: Path) -> None:
    """A record cut within a number costs a piece, never right bytes."""
    bucket, data = interfered(fail_third)
    with pytest.raises(TransferCut):
        bucket.pull(target, jobs=1)
    records = (target / ".fusefs-pull").glob("*.done")
    (record,) = [path for path in records if path.read_bytes().count(b"\n") == 3]
    lines = record.read_bytes().split(b"\n")
    # The second piece's number and half of its CRC.
    record.write_bytes(b"\n".join([*lines[:2], lines[2][:6]]))
    held = HeldFile(str(target), "big.bin", bucket.store.head(f"{PREFIX}big.bin"))
    assert held.done() == {0}
    held.prepare({0})
    held.write(2, memoryview(data)[2 * PIECE_BYTES : 3 * PIECE_BYTES])
    assert held.done() == {0, 2}
    assert bucket.pull(target).bytes_there == 2 * PIECE_BYTES
    assert (target / "big.bin").read_bytes() == data


def test_a_piece_that_rots_on_the_disk_is_fetched_again(target: Path) -> None:
    """A flipped bit in what a cut pull left costs one piece, whether or not a manifest knows."""
    bucket, data = interfered(fail_third)
    with pytest.raises(TransferCut):
        bucket.pull(target, jobs=1)
    (part,) = [
        path
        for path in (target / ".fusefs-pull").glob("*.part")
        if path.stat().st_size == len(data)
    ]
    with part.open("r+b") as file:
        file.seek(PIECE_BYTES + 4321)
        file.write(bytes([data[PIECE_BYTES + 4321] ^ 0x04]))
    report = bucket.pull(target)
    assert report.bytes_there == PIECE_BYTES
    assert (target / "big.bin").read_bytes() == data


def test_a_record_without_its_bytes_is_not_believed(target: Path) -> None:
    """Where the bytes are gone, or not as many, no piece counts as done."""
    bucket, data = interfered(fail_third)
    with pytest.raises(TransferCut):
        bucket.pull(target, jobs=1)
    for path in (target / ".fusefs-pull").glob("*.part"):
        path.unlink()
    assert bucket.pull(target).bytes_there == 0
    assert (target / "big.bin").read_bytes() == data


def test_an_object_that_changes_under_way_is_an_error(target: Path) -> None:
    """Bytes of two versions never mix: the pull stops, and the next one fetches the new version."""
    overwrites: list[Callable[[], object]] = []

    def overwrite(number: int) -> None:
        if number == 1:
            overwrites[0]()

    bucket, data = interfered(overwrite)
    overwrites.append(lambda: bucket.store.put(f"{PREFIX}big.bin", data[::-1]))
    with pytest.raises(TransferCut) as caught:
        bucket.pull(target, jobs=1)
    assert isinstance(caught.value.__cause__, ObjectChanged)
    bucket.pull(target)
    assert (target / "big.bin").read_bytes() == data[::-1]


def test_a_store_that_comes_back_is_waited_for(
    bucket: Bucket, target: Path, tmp_path: Path
) -> None:
    """Answers that may pass are tried again, short ones too."""
    bucket.store.fail_next(StoreUnavailable("busy"), 3)
    bucket.store.truncate_next(100, 2)
    bucket.pull(target)
    assert contents(target) == contents(tmp_path / "model")


def test_bytes_are_compared_with_the_manifest(bucket: Bucket, target: Path) -> None:
    """An object that somebody overwrote with as many other bytes is found out, and not placed."""
    good = bucket.read("config.json")
    bucket.store.put(f"{PREFIX}config.json", b"?" * len(good))
    for _ in range(2):
        with pytest.raises(TransferCut) as caught:
            bucket.pull(target)
        assert isinstance(caught.value.__cause__, CorruptData)
        assert contents(target).keys().isdisjoint(MODEL)
    bucket.store.put(f"{PREFIX}config.json", good)
    bucket.pull(target)
    assert (target / "config.json").read_bytes() == good


def test_what_the_manifest_lists_must_be_there(bucket: Bucket, target: Path) -> None:
    """A model of which a file is missing is refused before anything is fetched."""
    bucket.store.delete(f"{PREFIX}config.json")
    with pytest.raises(CorruptData, match=r"config\.json"):
        bucket.pull(target)
    assert not target.exists()


def test_half_a_push_is_refused(bucket: Bucket, target: Path) -> None:
    """While a journal stands there and no manifest, there is no model to pull."""
    bucket.store.delete(f"{PREFIX}.fusefs/manifest.json")
    bucket.store.put(f"{PREFIX}.fusefs/push.json", b"{}")
    with pytest.raises(FusefsError, match="not pushed to its end"):
        bucket.pull(target)


def test_nothing_there_is_an_error(target: Path) -> None:
    """A prefix with nothing below it is said, and no folder made."""
    with pytest.raises(ObjectNotFound):
        Bucket().pull(target)
    assert not target.exists()


def test_too_little_room_is_known_before(target: Path) -> None:
    """More bytes than the disk has left are refused before one is fetched."""
    store = Vast()
    store.put(f"{PREFIX}big.bin", b"x")
    pull = Pull(SOURCE, store, str(target), Crew(1), Watcher(), False)
    with pytest.raises(FusefsError, match="make room"):
        pull.run(dry_run=False)
    assert not target.exists()


def test_an_index_is_replaced_last(bucket: Bucket, target: Path, tmp_path: Path) -> None:
    """With force the old index goes before any file of the new model has its name."""
    bucket.pull(target)
    bucket.push(fill(tmp_path / "model", MODEL, seed=2), force=True)
    bucket.pull(target, force=True)
    assert contents(target) == contents(tmp_path / "model")
    index = target / "model.safetensors.index.json"
    others = [path for path in target.rglob("*") if path.is_file() and path != index]
    assert index.stat().st_ctime_ns >= max(path.stat().st_ctime_ns for path in others)


def test_progress_reaches_its_totals(bucket: Bucket, target: Path) -> None:
    """Every step is advanced by exactly what it announced, also where a pull goes on."""
    watcher = Watcher()
    Pull(SOURCE, bucket.store, str(target), Crew(4), watcher, False).run(dry_run=False)
    assert [step[0] for step in watcher.steps] == ["comparing", "pulling", "checking"]
    assert all(total == done for _, total, done in watcher.steps)
    again = Watcher()
    Pull(SOURCE, bucket.store, str(target), Crew(4), again, False).run(dry_run=False)
    assert again.steps == [("comparing", 0, sum(MODEL.values()))]
