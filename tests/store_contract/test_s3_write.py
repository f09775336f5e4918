"""What the S3 writer promises, on two real servers: whole objects or none, nothing sent twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from fusefs.config import S3Config
from fusefs.errors import (
    AccessDenied,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Upload
from fusefs.store.s3 import S3Store
from fusefs.store.s3_write import PARTS_MAX, S3Writer, _base64
from tests.harness.moto import Moto, allow
from tests.harness.weed import Weed
from tests.store_contract.test_contract import MIB, noise
from tests.store_contract.wire import Answer, WireServer, answer

PART = 5 * MIB
"""The smallest that S3 takes."""

SIZE = 2 * PART + 12345
"""Two parts and a rest."""


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket, who reads it, and the hand of somebody else."""

    bucket: str
    store: S3Store
    writer: S3Writer
    client: Any

    def another(self) -> S3Writer:
        """A writer that knows nothing of the first, as after a crash."""
        return S3Writer(self.bucket, S3Config(), 4, PART)

    def contents(self, meta: ObjectMeta) -> bytes:
        """The object, read through the store."""
        memory = bytearray(meta.size)
        if meta.size:
            self.store.read_into(meta.id, Extent(0, meta.size), memoryview(memory))
        return bytes(memory)


@pytest.fixture(params=["weed", "moto"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty bucket of each server."""
    if request.param == "weed":
        server: Weed | Moto = request.getfixturevalue("weed_environment")
        bucket = request.getfixturevalue("bucket")
    else:
        server = request.getfixturevalue("moto_environment")
        bucket = request.getfixturevalue("versioned_bucket")
    store = S3Store(bucket, S3Config(), 4)
    writer = S3Writer(bucket, S3Config(), 4, PART)
    made = Place(bucket, store, writer, server.client())
    yield made
    for each in (made.store, made.writer, made.client):
        each.close()


def parts_of(data: bytes) -> list[memoryview]:
    """The parts that an upload of `data` has."""
    return [memoryview(data)[start : start + PART] for start in range(0, len(data), PART)]


def send(upload: Upload, data: bytes) -> list[bool]:
    """Put all parts, several at once; which of them were sent."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(upload.put_part, range(99), parts_of(data)))


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_small_objects(size: int, place: Place) -> None:
    """A small object is written at once, and its metadata is what a reader is told."""
    data = noise(size)
    meta = place.writer.put("dir/ü +%", data)
    assert meta == place.store.head("dir/ü +%")
    assert place.contents(meta) == data


def test_large_objects_appear_at_once(place: Place) -> None:
    """Nobody sees an object of parts before `commit`, and then all of it, to the byte."""
    data = noise(SIZE)
    upload = place.writer.begin("model/shard", SIZE)
    assert upload.part_bytes == PART
    assert send(upload, data) == [True, True, True]
    with pytest.raises(ObjectNotFound):
        place.store.head("model/shard")
    assert place.store.list_page("model/", None).objects == ()
    meta = upload.commit()
    assert meta == place.store.head("model/shard")
    assert place.contents(meta) == data


def test_a_cut_attempt_is_gone_on_with(place: Place) -> None:
    """Parts that are there are not sent again, unless the data are others now."""
    data = noise(SIZE, 1)
    first = place.writer.begin("shard", SIZE)
    for index in (0, 2):
        assert first.put_part(index, parts_of(data)[index])
    changed = data[:-1] + bytes([data[-1] ^ 1])
    second = place.another()
    upload = second.begin("shard", SIZE)
    assert send(upload, changed) == [False, True, True]
    assert place.contents(upload.commit()) == changed
    assert place.writer.discard("shard") == 0  # one upload in all, and it is done
    second.close()


def test_uploads_of_other_keys_are_not_taken(place: Place) -> None:
    """An unfinished upload of a key that begins alike is another's."""
    data = noise(SIZE)
    send(place.writer.begin("shard.old", SIZE), data)
    assert send(place.writer.begin("shard", SIZE), data) == [True, True, True]


def test_an_overwrite_is_one_step(place: Place) -> None:
    """Until `commit` the old version is read; after it, its readers are told that it has gone."""
    old = place.writer.put("shard", noise(1000))
    upload = place.writer.begin("shard", SIZE)
    send(upload, noise(SIZE, 2))
    assert place.contents(old) == noise(1000)
    new = upload.commit()
    with pytest.raises(ObjectChanged):
        place.contents(old)
    assert place.contents(new) == noise(SIZE, 2)


def test_a_commit_whose_answer_was_lost(place: Place) -> None:
    """A second commit of the same upload says the same."""
    upload = place.writer.begin("shard", SIZE)
    send(upload, noise(SIZE))
    assert upload.commit() == upload.commit()


def test_a_commit_that_was_overtaken(place: Place) -> None:
    """If another object is there by the time of a second commit, it is not taken for ours."""
    upload = place.writer.begin("shard", SIZE)
    send(upload, noise(SIZE))
    upload.commit()
    other = place.writer.put("shard", b"other")
    # Moto breaks down over an upload that has ended (status 500).
    with pytest.raises((ObjectChanged, StoreUnavailable), match=r"overtaken|status 500"):
        upload.commit()
    assert place.store.head("shard") == other


def test_no_commit_with_a_hole(place: Place) -> None:
    """An upload with a part missing does not end."""
    upload = place.writer.begin("shard", SIZE)
    upload.put_part(0, parts_of(noise(SIZE))[0])
    with pytest.raises(FusefsError, match="1 of 3 parts"):
        upload.commit()


def test_discard(place: Place) -> None:
    """Discarding ends what is unfinished below a prefix; whoever is at work on it fails."""
    data = noise(SIZE)
    doomed = place.writer.begin("a/shard", SIZE)
    doomed.put_part(0, parts_of(data)[0])
    kept = place.writer.begin("b/shard", SIZE)
    kept.put_part(0, parts_of(data)[0])
    assert place.writer.discard("a/") == 1
    # Moto breaks down over it (status 500); the other says what Amazon says.
    with pytest.raises((ObjectChanged, StoreUnavailable), match=r"push again|status 500"):
        doomed.put_part(1, parts_of(data)[1])
    assert place.writer.begin("a/shard", SIZE).put_part(0, parts_of(data)[0])
    assert not place.another().begin("b/shard", SIZE).put_part(0, parts_of(data)[0])


def test_delete(place: Place) -> None:
    """A deleted object is gone, and to delete it twice is fine."""
    place.writer.put("object", b"x")
    for _ in range(2):
        place.writer.delete("object")
    with pytest.raises(ObjectNotFound):
        place.store.head("object")
    place.writer.publish("")


def test_larger_objects_have_larger_parts(place: Place) -> None:
    """No object needs more parts than S3 has numbers for."""
    size = 100_000 * MIB
    upload = place.writer.begin("huge", size)
    assert -(-size // upload.part_bytes) <= PARTS_MAX
    assert place.writer.discard("huge") == 1


def page_of(name: str, *parts: str) -> Answer:
    """An XML answer."""
    body = f"<{name}>{''.join(parts)}</{name}>".encode()
    return answer("200 OK", {"Content-Length": str(len(body))}, body)


def upload_of(key: str, upload_id: str) -> str:
    """An entry of a list of uploads."""
    return f"<Upload><Key>{key}</Key><UploadId>{upload_id}</UploadId></Upload>"


def part_of(number: int, data: bytes) -> str:
    """An entry of a list of parts."""
    etag = hashlib.md5(data).hexdigest()
    return f'<Part><PartNumber>{number}</PartNumber><ETag>"{etag}"</ETag></Part>'


UPLOADS, PARTS = "ListMultipartUploadsResult", "ListPartsResult"
MORE = "<IsTruncated>true</IsTruncated>"


def test_lists_of_several_pages(server: WireServer) -> None:
    """Uploads and parts are looked for on every page, and the fullest upload is gone on with."""
    server.answers += [
        page_of(
            UPLOADS, upload_of("shard.old", "x"), upload_of("shard", "a"), MORE,
            "<NextKeyMarker>shard</NextKeyMarker><NextUploadIdMarker>a</NextUploadIdMarker>",
        ),
        page_of(PARTS, part_of(1, b"0")),
        page_of(UPLOADS, upload_of("shard", "b")),
        page_of(PARTS, part_of(1, b"1"), MORE, "<NextPartNumberMarker>1</NextPartNumberMarker>"),
        page_of(PARTS, part_of(2, b"2")),
    ]  # fmt: skip
    writer = S3Writer("bucket", S3Config(endpoint_url=f"http://127.0.0.1:{server.port}"), 1, 1)
    upload = writer.begin("shard", 2)
    assert upload.put_part(0, memoryview(b"1")) is False
    assert upload.put_part(1, memoryview(b"2")) is False
    asked = [head.split()[1] for head in server.requests]
    assert "key-marker=shard" in asked[2]
    assert "upload-id-marker=a" in asked[2]
    assert "part-number-marker=1" in asked[4]
    writer.close()


@pytest.mark.parametrize("place", [UPLOADS, PARTS])
def test_lists_without_an_end(place: str, server: WireServer) -> None:
    """A list that says it goes on, and not where, is an error and not a loop."""
    if place == PARTS:
        server.answers.append(page_of(UPLOADS, upload_of("shard", "a")))
    server.answers.append(page_of(place, MORE))
    writer = S3Writer("bucket", S3Config(endpoint_url=f"http://127.0.0.1:{server.port}"), 1, 1)
    with pytest.raises(StoreUnavailable, match="names no next page"):
        writer.begin("shard", 2)
    writer.close()


def test_the_server_checks_what_arrives(weed_environment: Weed, bucket: str) -> None:
    """Bytes that do not fit their checksum are refused by the server, and may be sent again."""
    writer = S3Writer(bucket, S3Config(), 1)
    wrong = _base64(hashlib.md5(b"other").digest())
    with pytest.raises(StoreUnavailable, match="damaged"):
        writer._bucket.call("it", "put_object", Key="object", Body=b"data", ContentMD5=wrong)
    writer.close()


def test_who_may_not_write(
    moto_environment: Moto, versioned_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's credentials do not write, and the sentence says what is missing."""
    policy = allow(["s3:GetObject", "s3:ListBucket"], "*")
    for name, value in moto_environment.make_user("reader", policy).items():
        monkeypatch.setenv(name, value)
    writer = S3Writer(versioned_bucket, S3Config(), 1)
    with pytest.raises(AccessDenied, match="policy"):
        writer.put("object", b"x")
    writer.close()
