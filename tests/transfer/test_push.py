"""What push writes, in which order, what it refuses, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import pytest

from fusefs.errors import AccessDenied, CorruptData, FusefsError, ObjectChanged, StoreUnavailable
from fusefs.objects import Extent, ObjectMeta
from fusefs.store import checksums
from fusefs.store.base import Source
from fusefs.store.checksums import checksums_of, decode_note
from fusefs.transfer.crew import Crew
from fusefs.transfer.local import open_unchanged, scan
from fusefs.transfer.manifest import is_name
from fusefs.transfer.progress import TransferCut
from fusefs.transfer.push import Destination, Push, discard
from tests.harness.simulated_writer import SimulatedWriter
from tests.transfer.folders import MODEL, PREFIX, SOURCE, Bucket, Watcher, contents, fill

INDEX = "model.safetensors.index.json"
MANIFEST = ".fusefs/manifest.json"
JOURNAL = ".fusefs/push.json"
NOTE = ".fusefs/checksums.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model."""
    return fill(tmp_path / "model", MODEL)


def check_note(bucket: Bucket, model: Path) -> None:
    """The note has the CRCs of every file that has bytes, of the version that is there."""
    rows = decode_note(bucket.read(NOTE), NOTE)
    files = contents(model)
    assert rows.keys() == files.keys()
    for name, data in files.items():
        sums = checksums_of(rows[name], bucket.store.head(PREFIX + name).id.etag)
        if not data:
            assert sums is None
            continue
        assert sums is not None
        pieces = list(sums.pieces(Extent(0, len(data))))
        assert [piece.stop for piece, _ in pieces] == list(sums.stops)
        assert [(p.start, crc) for p, crc in pieces] == [
            (at, zlib.crc32(data[at : at + (1 << 20)])) for at in range(0, len(data), 1 << 20)
        ]
        assert checksums_of(rows[name], "another") is None


@pytest.fixture
def bucket() -> Bucket:
    """An empty bucket."""
    return Bucket()


def check_whole(bucket: Bucket, model: Path) -> None:
    """The bucket holds exactly the folder, and a manifest that says so."""
    files = contents(model)
    assert bucket.names() == {*files, MANIFEST, NOTE}
    assert {name: bucket.read(name) for name in files} == files
    assert {name: row["sha256"] for name, row in bucket.manifest().items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert bucket.unfinished == {}


def written(bucket: Bucket) -> list[str]:
    """The names in the order in which they appeared to readers."""
    return [
        str(call[1]).removeprefix(PREFIX)
        for call in bucket.writer.calls
        if call[0] in ("put", "commit")
    ]


def test_checksums_are_noted(bucket: Bucket, model: Path) -> None:
    """A CRC for each MiB of each version; a push of what is there adds them if they are missing."""
    assert NOTE == checksums.NOTE
    assert not is_name(NOTE)
    bucket.push(model)
    check_note(bucket, model)
    before = bucket.read(NOTE)
    bucket.store.delete(PREFIX + NOTE)
    bucket.make_writer()
    assert bucket.push(model).bytes_moved == 0
    assert bucket.read(NOTE) == before
    assert written(bucket) == [NOTE]
    bucket.make_writer()
    bucket.push(model)
    assert written(bucket) == []


def test_checksums_follow_what_is_replaced(bucket: Bucket, model: Path) -> None:
    """After a push that sends one file anew and keeps the others, the note is of all of them."""
    bucket.push(model)
    (model / "config.json").write_bytes(b"{}")
    bucket.push(model, force=True)
    check_note(bucket, model)


def test_a_folder_becomes_a_model(bucket: Bucket, model: Path) -> None:
    """Every file arrives with its bytes, and the report counts them."""
    report = bucket.push(model)
    check_whole(bucket, model)
    size = sum(MODEL.values())
    assert (report.files, report.files_moved) == (len(MODEL), len(MODEL))
    assert (report.bytes_moved, report.bytes_there) == (size, 0)


def test_what_readers_look_at_comes_last(bucket: Bucket, model: Path) -> None:
    """The journal first; then weights, configuration, index, manifest; then it is published."""
    bucket.push(model)
    order = written(bucket)
    assert order[0] == JOURNAL
    assert order[-3:] == [INDEX, NOTE, MANIFEST]
    shards = [order.index(name) for name in MODEL if name.endswith(".safetensors")]
    companions = [order.index(name) for name in ("config.json", "tokenizer/vocab.txt")]
    assert max(shards) < min(companions)
    assert bucket.writer.calls[-2:] == [("delete", PREFIX + JOURNAL), ("publish", PREFIX)]


def test_a_second_push_sends_nothing(bucket: Bucket, model: Path) -> None:
    """The same folder again is already there: not one call writes."""
    bucket.push(model)
    report = bucket.push(model)
    assert (report.files_moved, report.bytes_moved) == (0, 0)
    assert report.bytes_there == sum(MODEL.values())
    assert bucket.writer.calls == []


def test_a_file_that_vanished_is_sent_again(bucket: Bucket, model: Path) -> None:
    """The manifest alone is not believed: what the listing lacks is sent."""
    bucket.push(model)
    bucket.store.delete(PREFIX + "config.json")
    assert bucket.push(model).moved == ("config.json",)
    check_whole(bucket, model)


def test_new_files_need_no_force(bucket: Bucket, model: Path) -> None:
    """Files that are added harm nobody: only they are sent."""
    bucket.push(model)
    fill(model, {"README.md": 100}, seed=3)
    assert bucket.push(model).moved == ("README.md",)
    check_whole(bucket, model)


def test_another_version_needs_force(bucket: Bucket, model: Path) -> None:
    """A changed file is refused with its name; nothing is written then. With force it replaces."""
    bucket.push(model)
    fill(model, {"config.json": 201}, seed=4)
    with pytest.raises(FusefsError, match=r"config\.json.*--force") as caught:
        bucket.push(model)
    assert "\n" not in str(caught.value)
    assert bucket.writer.calls == []
    report = bucket.push(model, force=True)
    assert set(report.moved) == {"config.json", INDEX}
    check_whole(bucket, model)


def test_another_model_is_replaced_whole(bucket: Bucket, model: Path, tmp_path: Path) -> None:
    """Manifest and index go first, what only the old model had goes last, strangers stay."""
    bucket.push(model)
    bucket.store.put(PREFIX + "notes.txt", b"mine")
    other = fill(tmp_path / "other", {"model.safetensors": 1000, "config.json": 10}, seed=5)
    with pytest.raises(FusefsError, match="holds something else"):
        bucket.push(other)
    report = bucket.push(other, force=True)
    calls = [(call[0], str(call[1]).removeprefix(PREFIX)) for call in bucket.writer.calls]
    assert calls[:3] == [("put", JOURNAL), ("delete", MANIFEST), ("delete", INDEX)]
    assert bucket.names() == {"model.safetensors", "config.json", "notes.txt", NOTE, MANIFEST}
    assert "model-00001-of-00002.safetensors" in report.removed
    assert "notes.txt" not in report.removed


@pytest.mark.parametrize("name", ["config.json", "consolidated.safetensors", "model.gguf"])
def test_what_push_did_not_write_is_refused(bucket: Bucket, model: Path, name: str) -> None:
    """An object under a name of ours, even of equal size, or weights beside them: refused."""
    bucket.store.put(PREFIX + name, b"x" * MODEL.get(name, 10))
    with pytest.raises(FusefsError, match=name):
        bucket.push(model)
    assert bucket.writer.calls == []
    bucket.push(model, force=True)
    assert set(MODEL) <= bucket.names()


def test_a_file_in_place_of_a_folder_is_refused(bucket: Bucket, model: Path) -> None:
    """Where the bucket has an object and the folder a folder, no force helps."""
    bucket.store.put(PREFIX + "tokenizer", b"x")
    with pytest.raises(FusefsError, match="tokenizer"):
        bucket.push(model, force=True)


def test_a_dry_run_writes_nothing(bucket: Bucket, model: Path) -> None:
    """A dry run tells what would be sent, and the bucket stays empty."""
    report = bucket.push(model, dry_run=True)
    assert set(report.moved) == set(MODEL)
    assert report.bytes_moved == sum(MODEL.values())
    assert (bucket.names(), bucket.writer.calls) == (set(), [])


class FailingWriter(SimulatedWriter):
    """Fails for good at its `at`th part, when the name `at` appears, or the journal goes."""

    at: int | str = 0

    def log(self, *call: object) -> None:
        """See `SimulatedWriter`."""
        parts = sum(earlier[0] == "part" for earlier in self.calls)
        verbs = ("delete",) if self.at == JOURNAL else ("commit", "put")
        named = call[0] in verbs and call[1] == f"{PREFIX}{self.at}"
        if named or (call[0] == "part" and parts == self.at):
            raise AccessDenied("the token expired")
        super().log(*call)


def cut_at(bucket: Bucket, model: Path, at: int | str, force: bool = False) -> None:
    """Push with one thread until the failure."""
    writer = FailingWriter(bucket.store, bucket.unfinished, bucket.writer.part_bytes)
    writer.at = at
    push = Push(str(model), Destination(SOURCE, bucket.store, writer), Crew(1), Watcher(), force)
    with pytest.raises(TransferCut, match="the token expired"):
        push.run(dry_run=False)


@pytest.mark.parametrize(
    "at", [0, 3, 8, "model-00002-of-00002.safetensors", "config.json", INDEX, MANIFEST, JOURNAL]
)
def test_a_push_that_was_cut_goes_on(bucket: Bucket, model: Path, at: int | str) -> None:
    """Cut anywhere, the same command needs no force, sends only the rest, and all is whole."""
    cut_at(bucket, model, at)
    assert (MANIFEST in bucket.names()) == (at == JOURNAL)
    before = bucket.names()
    report = bucket.push(model)
    assert before - {JOURNAL, NOTE, MANIFEST} <= set(MODEL)
    assert report.bytes_moved + report.bytes_there == sum(MODEL.values())
    if isinstance(at, int):
        fresh = [call[3] for call in bucket.writer.calls if call[0] == "part"]
        assert fresh.count(False) == (at if at < 6 else at - 6)
    check_whole(bucket, model)


@pytest.mark.parametrize("at", [0, 3, "config.json", INDEX, MANIFEST, JOURNAL])
def test_a_replacement_that_was_cut_goes_on(
    bucket: Bucket, model: Path, tmp_path: Path, at: int | str
) -> None:
    """Cut while replacing, no index and no manifest lies about a mixture; again, all is new."""
    old = fill(tmp_path / "old", {**MODEL, "old.safetensors": 10}, seed=8)
    bucket.push(old)
    cut_at(bucket, model, at, force=True)
    if at not in (MANIFEST, JOURNAL):
        assert INDEX not in bucket.names()
        assert MANIFEST not in bucket.names()
    bucket.push(model)
    check_whole(bucket, model)


def test_another_push_does_not_take_over_an_attempt(
    bucket: Bucket, model: Path, tmp_path: Path
) -> None:
    """What an attempt at another model left is refused; with force all of it is replaced."""
    cut_at(bucket, model, INDEX)
    other = fill(tmp_path / "other", {"other.safetensors": 500}, seed=6)
    with pytest.raises(FusefsError, match="--force"):
        bucket.push(other)
    bucket.push(other, force=True)
    check_whole(bucket, other)


def test_a_store_that_comes_back_is_waited_for(bucket: Bucket, model: Path) -> None:
    """Answers that may pass are tried again, and what arrived is right."""
    destination = Destination(SOURCE, bucket.store, bucket.writer)
    bucket.store.fail_next(StoreUnavailable("busy"), 2)
    bucket.writer.failures.extend([StoreUnavailable("busy")] * 3)
    Push(str(model), destination, Crew(2), Watcher(), False).run(dry_run=False)
    check_whole(bucket, model)


def test_progress_reaches_its_totals(bucket: Bucket, model: Path) -> None:
    """Both steps are advanced by exactly what they announced."""
    watcher = Watcher()
    destination = Destination(SOURCE, bucket.store, bucket.writer)
    Push(str(model), destination, Crew(4), watcher, False).run(dry_run=False)
    size = sum(MODEL.values())
    assert watcher.steps == [("hashing", size, size), ("pushing", size, size)]


def test_a_file_that_changes_is_refused(model: Path) -> None:
    """A file that is not as it was when the folder was looked at is not sent."""
    files, _ = scan(str(model))
    fill(model, {"config.json": 201}, seed=7)
    (changed,) = [file for file in files if file.name == "config.json"]
    with pytest.raises(ObjectChanged, match=r"config\.json"):
        open_unchanged(changed)
    Path(changed.path).unlink()
    with pytest.raises(ObjectChanged, match=r"config\.json.*any more"):
        open_unchanged(changed)


class LyingWriter(SimulatedWriter):
    """Says of every small object that it is one byte short."""

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        return super().put(key, data[:-1])


def test_an_answer_of_another_size_is_an_error(bucket: Bucket, model: Path) -> None:
    """What the store says it has is compared with what was sent."""
    writer = LyingWriter(bucket.store, {})
    push = Push(str(model), Destination(SOURCE, bucket.store, writer), Crew(2), Watcher(), False)
    with pytest.raises(TransferCut, match="push it again"):
        push.run(dry_run=False)
    assert MANIFEST not in bucket.names()


@pytest.mark.parametrize(
    "note",
    [
        b"junk",
        b"[]",
        b'{"v": 2, "files": []}',
        b'{"v": 1, "files": [{"name": "../x", "size": 1, "sha256": "' + b"0" * 64 + b'"}]}',
        b'{"v": 1, "files": [{"name": "x", "size": -1, "sha256": "' + b"0" * 64 + b'"}]}',
        b'{"v": 1, "files": [{"name": "x", "size": 1, "sha256": "y"}]}',
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    bucket: Bucket, model: Path, note: bytes
) -> None:
    """What lies in the manifest's place is named; with force it is replaced."""
    bucket.store.put(PREFIX + MANIFEST, note)
    with pytest.raises(CorruptData, match=r"manifest\.json"):
        bucket.push(model)
    bucket.push(model, force=True)
    check_whole(bucket, model)


def test_discard_forgets_the_parts(bucket: Bucket, model: Path) -> None:
    """Discard removes parts below the destination and leaves the others."""
    cut_at(bucket, model, 3)
    bucket.unfinished["elsewhere"] = {0: b"x"}
    destination = Destination(SOURCE, bucket.store, bucket.make_writer())
    assert discard(destination, Crew(1)) == 1
    assert set(bucket.unfinished) == {"elsewhere"}


def test_names_no_bucket_can_hold_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    """A key of more than 1,024 bytes, or bytes that are no UTF-8: one sentence, nothing sent."""
    deep = fill(tmp_path / "deep", {"/".join(["d" * 200] * 6): 1})
    with pytest.raises(FusefsError, match="1024"):
        bucket.push(deep)
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "caf\udce9").write_bytes(b"x")
    with pytest.raises(FusefsError, match="not UTF-8"):
        bucket.push(odd)
    assert bucket.names() == set()


def test_a_folder_is_not_pushed_into_itself(bucket: Bucket, model: Path) -> None:
    """A destination inside the folder, or the folder itself, is refused."""
    for place in (model, model / "sub"):
        source = Source("file", str(place), "", f"file://{place}")
        destination = Destination(source, bucket.store, bucket.writer)
        with pytest.raises(FusefsError, match="lies in"):
            Push(str(model), destination, Crew(1), Watcher(), True).run(dry_run=False)


def test_the_journal_names_the_whole_model(bucket: Bucket, model: Path) -> None:
    """After a cut the journal lists every file of the model with its digest."""
    cut_at(bucket, model, 0)
    rows = json.loads(bucket.read(JOURNAL))["files"]
    assert {row["name"] for row in rows} == set(MODEL)
