"""Writing to Azure Blob, and reading with a SAS, on a real server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from azure.core.exceptions import HttpResponseError

from fusefs.config import Config
from fusefs.errors import AccessDenied, FusefsError, ObjectNotFound
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.azure_write import PART_BYTES_MIN, block_id, part_bytes
from fusefs.store.base import Store, Upload, Writer
from fusefs.store.source import open_store, open_writer, parse_source
from tests.harness.azurite import ACCOUNT, Azurite
from tests.store_contract.test_contract import noise, read_all

PART = PART_BYTES_MIN
DATA = noise(2 * PART + 4321)


@pytest.fixture
def source(container: str) -> str:
    """The SOURCE of a fresh container."""
    return f"az://{ACCOUNT}/{container}"


@pytest.fixture
def writer(azurite_environment: Azurite, source: str) -> Iterator[Writer]:
    """What writes to it."""
    made = open_writer(parse_source(source), Config())
    yield made
    made.close()


@pytest.fixture
def store(azurite_environment: Azurite, source: str) -> Iterator[Store]:
    """What reads from it."""
    made = open_store(parse_source(source), Config())
    yield made
    made.close()


def parts(data: bytes) -> list[memoryview]:
    """The parts of an object."""
    return [memoryview(data)[start : start + PART] for start in range(0, len(data), PART)]


def put_all(upload: Upload, data: bytes) -> list[bool]:
    """Put all parts from three threads; which of them were new."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(upload.put_part, range(len(parts(data))), parts(data)))


def test_small_objects(writer: Writer, store: Store) -> None:
    """A small object, an empty one too, is there at once, and the answer is what a reader sees."""
    for data in (b"", b"x", noise(70_000)):
        meta = writer.put("dir/ob ject%2F", data)
        assert meta == store.head("dir/ob ject%2F")
        assert read_all(store, meta) == data


def test_an_upload_is_seen_when_it_is_whole(writer: Writer, store: Store) -> None:
    """Until the commit readers see what was there before, then all of the new version."""
    before = writer.put("model", b"old")
    upload = writer.begin("model", len(DATA))
    assert upload.part_bytes == PART
    assert put_all(upload, DATA) == [True, True, True]
    assert store.head("model") == before
    assert read_all(store, before) == b"old"
    meta = upload.commit()
    assert meta == store.head("model")
    assert meta.size == len(DATA)
    assert read_all(store, meta) == DATA


def test_an_attempt_that_was_cut_goes_on(writer: Writer, store: Store) -> None:
    """Parts that are there are not sent again; parts of other content are, under any index."""
    first = writer.begin("model", len(DATA))
    assert first.put_part(0, parts(DATA)[0])
    assert first.put_part(2, parts(DATA)[2])
    assert put_all(writer.begin("model", len(DATA)), DATA) == [False, True, False]
    changed = noise(PART, 9) + DATA[PART:]
    upload = writer.begin("model", len(changed))
    assert put_all(upload, changed) == [True, False, False]
    assert read_all(store, upload.commit()) == changed


def test_a_commit_may_be_made_again(writer: Writer, store: Store) -> None:
    """A commit whose answer was lost is made again, by this attempt or by a later one."""
    upload = writer.begin("model", len(DATA))
    put_all(upload, DATA)
    upload.commit()
    assert read_all(store, upload.commit()) == DATA
    later = writer.begin("model", len(DATA))
    assert put_all(later, DATA) == [False, False, False]
    assert read_all(store, later.commit()) == DATA


def test_what_is_damaged_on_the_way_is_refused(azurite: Azurite, container: str) -> None:
    """The server compares the MD5 that goes with a part: what our parts rely on is true."""
    with azurite.client() as client:
        blob = client.get_blob_client(container, "model")
        right = base64.b64encode(hashlib.md5(b"right").digest()).decode()
        headers = {"Content-MD5": right}
        blob.stage_block(block_id(0, b"0" * 16), b"right", headers=headers)
        with pytest.raises(HttpResponseError):
            blob.stage_block(block_id(1, b"0" * 16), b"wrong", headers=headers)


def test_discard(azurite: Azurite, container: str, writer: Writer, store: Store) -> None:
    """What was never committed goes; what readers see stays as it is, empty objects too."""
    kept: dict[str, ObjectMeta] = {
        "dir/kept": writer.put("dir/kept", b"kept"),
        "dir/empty": writer.put("dir/empty", b""),
    }
    for key in ("dir/cut", "dir/sub/cut", "elsewhere/cut"):
        assert writer.begin(key, len(DATA)).put_part(0, parts(DATA)[0])
    assert writer.discard("dir/") == 2
    assert writer.discard("dir/") == 0
    assert {key: store.head(key) for key in kept} == kept
    with azurite.client() as client:
        names = client.get_container_client(container).list_blobs(include=["uncommittedblobs"])
        assert sorted(blob.name for blob in names) == ["dir/empty", "dir/kept", "elsewhere/cut"]
    assert put_all(writer.begin("dir/cut", len(DATA)), DATA) == [True, True, True]


def test_delete(writer: Writer, store: Store) -> None:
    """Deleting is done once and may be done again; nothing is published."""
    writer.put("dir/object", b"x")
    for _ in range(2):
        writer.delete("dir/object")
        with pytest.raises(ObjectNotFound):
            store.head("dir/object")
    writer.publish("dir/")
    writer.close()
    writer.close()


def test_a_missing_container_is_told(azurite_environment: Azurite) -> None:
    """Writing to a container that does not exist is ObjectNotFound that says so."""
    writer = open_writer(parse_source(f"az://{ACCOUNT}/no-such-container"), Config())
    with pytest.raises(ObjectNotFound, match="no such container"):
        writer.put("object", b"x")
    with pytest.raises(ObjectNotFound, match="no such container"):
        writer.begin("object", 1).put_part(0, memoryview(b"x"))
    writer.close()


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, PART), (50_000 * PART, PART), (50_000 * PART + 1, 9 << 20), (1 << 42, 84 << 20)],
)
def test_parts_are_few_enough(size: int, expected: int) -> None:
    """Parts are 8 MiB, and larger where a blob would have more blocks than Azure takes."""
    assert part_bytes(size) == expected
    assert -(-size // part_bytes(size)) <= 50_000
    assert len(block_id(0, b"0" * 16)) == len(block_id(49_999, b"1" * 16)) <= 88


def test_a_sas_of_one_container(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, writer: Writer
) -> None:
    """A SAS that lets read and list is all a mount needs; it writes nothing, and it ends."""
    source = parse_source(f"az://{ACCOUNT}/{container}")
    writer.put("dir/object", b"content")
    account_only = f"AccountName={ACCOUNT};BlobEndpoint={azurite.endpoint}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", account_only)
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azurite.sas(container, "rl"))
    store, refused = open_store(source, Config()), open_writer(source, Config())
    store.check("dir/")
    listed = store.list_page("dir/", None).objects
    assert [meta.id.key for meta in listed] == ["dir/object"]
    assert read_all(store, listed[0]) == b"content"
    with pytest.raises(AccessDenied) as denied:
        refused.put("dir/object", b"changed")
    assert "sig" not in str(denied.value)
    store.close()
    refused.close()
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azurite.sas(container, "rl", hours=-1))
    expired = open_store(source, Config())
    with pytest.raises(AccessDenied, match="has expired"):
        expired.check("")
    expired.close()


def test_a_part_that_nobody_put_is_no_object(writer: Writer, store: Store) -> None:
    """A commit whose blocks are gone (somebody discarded them) fails and makes nothing."""
    upload = writer.begin("dir/model", len(DATA))
    put_all(upload, DATA)
    assert writer.discard("dir/") == 1
    with pytest.raises(FusefsError):
        upload.commit()
    with pytest.raises(ObjectNotFound):
        store.head("dir/model")


def test_reads_of_what_was_written(writer: Writer, store: Store) -> None:
    """A range across parts is exact."""
    upload = writer.begin("model", len(DATA))
    put_all(upload, DATA)
    buffer = bytearray(2 * PART)
    store.read_into(upload.commit().id, Extent(100, 100 + 2 * PART), memoryview(buffer))
    assert buffer == DATA[100 : 100 + 2 * PART]
