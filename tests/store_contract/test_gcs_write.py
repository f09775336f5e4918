"""What the writer to Google Cloud Storage promises, on a server with Google's manners."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.config import GcsConfig
from fusefs.errors import (
    AccessDenied,
    FusefsError,
    InternalError,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Upload
from fusefs.store.gcs_write import COMPOSE_MAX, GcsWriter
from tests.store_contract.gcs_subject import PART_BYTES, GcsSubject

KEY = "dir/model-00001-of-00002.safetensors"


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that are nowhere the same."""
    return random.Random(seed).randbytes(size)


def part(data: bytes, upload: Upload, index: int) -> memoryview:
    """The bytes of one part."""
    return memoryview(data)[index * upload.part_bytes : (index + 1) * upload.part_bytes]


def put_all(upload: Upload, data: bytes) -> list[bool]:
    """Put all parts, last one first, and return which were sent."""
    count = -(-len(data) // upload.part_bytes)
    with ThreadPoolExecutor(4) as pool:
        indices = range(count - 1, -1, -1)
        return list(pool.map(lambda i: upload.put_part(i, part(data, upload, i)), indices))


def content(gcs: GcsSubject, meta: ObjectMeta) -> bytes:
    """What the store reads."""
    buffer = bytearray(meta.size)
    if meta.size:
        gcs.store.read_into(meta.id, Extent(0, meta.size), memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_a_small_object(gcs: GcsSubject, size: int) -> None:
    """`put` writes an object, the empty one too, and says of it what the store says."""
    meta = gcs.writer().put("small é%2F", noise(size))
    assert meta == gcs.store.head("small é%2F")
    assert content(gcs, meta) == noise(size)


@pytest.mark.parametrize(
    "size", [1, PART_BYTES, PART_BYTES + 1, 7 * PART_BYTES - 1, (COMPOSE_MAX + 1) * PART_BYTES]
)
def test_a_large_object(gcs: GcsSubject, size: int) -> None:
    """Parts from several threads, in any order, make the object, and leave nothing else behind."""
    data = noise(size)
    upload = gcs.writer().begin(KEY, size)
    assert all(put_all(upload, data))
    with pytest.raises(ObjectNotFound):
        gcs.store.head(KEY)
    meta = upload.commit()
    assert meta == gcs.store.head(KEY)
    assert content(gcs, meta) == data
    assert gcs.google.server.keys(gcs.bucket) == {KEY}


def test_the_parts_of_parts_of_parts(gcs: GcsSubject) -> None:
    """More parts than two rounds of composing can take are composed in three."""
    count = COMPOSE_MAX**2 + 1
    data = noise(count * 10 - 3)
    # Not through the proxy: it would see thousands of requests.
    config = GcsConfig(endpoint_url=gcs.google.server.endpoint, anonymous=True)
    writer = GcsWriter(gcs.bucket, "dir/", config, 8, part_bytes=10)
    upload = writer.begin(KEY, len(data))
    put_all(upload, data)
    assert all(key.startswith("dir/.fusefs/parts/") for key in gcs.google.server.keys(gcs.bucket))
    assert content(gcs, upload.commit()) == data
    assert gcs.google.server.keys(gcs.bucket) == {KEY}
    writer.close()


def test_an_attempt_that_was_cut_goes_on(gcs: GcsSubject) -> None:
    """What is there with the right content is not sent again; other content is replaced."""
    data = noise(5 * PART_BYTES - 9)
    cut = gcs.writer().begin(KEY, len(data))
    for index in (0, 2):
        cut.put_part(index, part(data, cut, index))
    cut.put_part(3, memoryview(bytes(PART_BYTES)))
    again = gcs.writer().begin(KEY, len(data))
    sent = [again.put_part(index, part(data, again, index)) for index in range(5)]
    assert sent == [False, True, False, True, True]
    assert content(gcs, again.commit()) == data


def test_another_version_replaces_at_once(gcs: GcsSubject) -> None:
    """Until `commit` the old version is there, whole; from then on the new one is."""
    old = gcs.writer().put(KEY, b"old")
    data = noise(3 * PART_BYTES)
    upload = gcs.writer().begin(KEY, len(data))
    put_all(upload, data)
    assert content(gcs, gcs.store.head(KEY)) == b"old"
    meta = upload.commit()
    assert content(gcs, meta) == data
    with pytest.raises(ObjectChanged):
        content(gcs, old)


@pytest.mark.parametrize("lost", ["/compose", "model-00001-of-00002.safetensors/compose", "round0"])
def test_an_answer_to_compose_gets_lost(gcs: GcsSubject, lost: str) -> None:
    """A `commit` whose answer was lost is made again, and finds what it had made."""
    data = noise((COMPOSE_MAX + 3) * PART_BYTES)
    upload = gcs.writer().begin(KEY, len(data))
    put_all(upload, data)
    gcs.google.lose_answer(lost)
    with pytest.raises(StoreUnavailable):
        upload.commit()
    meta = upload.commit()
    assert meta == gcs.store.head(KEY)
    assert content(gcs, meta) == data
    assert gcs.google.server.keys(gcs.bucket) == {KEY}


def test_cleaning_up_fails(gcs: GcsSubject) -> None:
    """A `commit` that could not look for leftovers is made again, and composes nothing twice."""
    data = noise(2 * PART_BYTES)
    upload = gcs.writer().begin(KEY, len(data))
    put_all(upload, data)
    gcs.google.lose_answer(f"/b/{gcs.bucket}/o?")
    with pytest.raises(StoreUnavailable):
        upload.commit()
    made = gcs.store.head(KEY)
    assert upload.commit() == made == gcs.store.head(KEY)


def test_a_server_that_keeps_composed_parts(gcs: GcsSubject) -> None:
    """Where composing leaves the parts, they are removed one by one."""
    config = GcsConfig(endpoint_url=gcs.google.server.endpoint, anonymous=True)
    writer = GcsWriter(gcs.bucket, "", config, 8, PART_BYTES)
    data = noise((COMPOSE_MAX + 1) * PART_BYTES)
    upload = writer.begin(KEY, len(data))
    put_all(upload, data)
    assert content(gcs, upload.commit()) == data
    assert gcs.google.server.keys(gcs.bucket) == {KEY}
    writer.close()


def test_parts_that_somebody_changes(gcs: GcsSubject) -> None:
    """Parts are composed in the versions that were put: a stranger's are refused, not mixed in."""
    data = noise(3 * PART_BYTES)
    upload = gcs.writer().begin(KEY, len(data))
    put_all(upload, data)
    stranger = gcs.writer().begin(KEY, len(data))
    stranger.put_part(1, memoryview(noise(PART_BYTES, 2)))
    with pytest.raises(ObjectChanged):
        upload.commit()
    with pytest.raises(ObjectNotFound):
        gcs.store.head(KEY)


def test_a_part_that_was_never_put(gcs: GcsSubject) -> None:
    """An object is never made with a hole in it."""
    upload = gcs.writer().begin(KEY, 3 * PART_BYTES)
    upload.put_part(0, memoryview(bytes(PART_BYTES)))
    with pytest.raises(InternalError, match="part 1 of 3"):
        upload.commit()


@pytest.mark.parametrize("checks", [True, False])
def test_what_is_damaged_on_the_way(gcs: GcsSubject, checks: bool) -> None:
    """Google refuses what does not fit its MD5; where a server does not, its answer tells."""
    gcs.google.damage, gcs.google.checks = True, checks
    with pytest.raises(FusefsError) as raised:
        gcs.writer().put("object", noise(5000))
    assert isinstance(raised.value, StoreUnavailable) != checks
    assert gcs.google.server.keys(gcs.bucket) == (set() if checks else {"object"})


def test_discard(gcs: GcsSubject) -> None:
    """Parts below a prefix go, those of others and whole objects stay; objects are counted."""
    for key in ("a/one", "a/two", "b/three"):
        upload = gcs.writer().begin(key, 2 * PART_BYTES)
        for index in range(2):
            upload.put_part(index, memoryview(bytes(PART_BYTES)))
    gcs.writer().put("a/whole", b"x")
    assert gcs.writer().discard("a/") == 2
    assert gcs.writer().discard("a/") == 0
    keys = gcs.google.server.keys(gcs.bucket)
    assert "a/whole" in keys
    assert len(keys) == 3
    assert gcs.writer().discard("") == 1
    assert gcs.google.server.keys(gcs.bucket) == {"a/whole"}


def test_delete(gcs: GcsSubject) -> None:
    """An object goes; one that is not there has gone already."""
    gcs.writer().put("object", b"x")
    gcs.writer().delete("object")
    gcs.writer().delete("object")
    assert gcs.google.server.keys(gcs.bucket) == set()
    gcs.writer().publish("")


def test_who_may_not_write(gcs: GcsSubject) -> None:
    """A refusal is AccessDenied for every kind of request, and nothing of it is a secret."""
    upload = gcs.writer().begin(KEY, PART_BYTES)
    upload.put_part(0, memoryview(bytes(PART_BYTES)))
    gcs.google.forbidden = True
    for action in (
        lambda: gcs.writer().put("object", b"x"),
        lambda: gcs.writer().begin(KEY, 1),
        lambda: upload.put_part(0, memoryview(bytes(PART_BYTES))),
        upload.commit,
        lambda: gcs.writer().delete("object"),
        lambda: gcs.writer().discard(""),
    ):
        with pytest.raises(AccessDenied) as raised:
            action()
        assert "hunter2" not in str(raised.value)


def test_a_missing_bucket(gcs: GcsSubject) -> None:
    """To write where there is no bucket is ObjectNotFound."""
    writer = GcsWriter("no-such-bucket", "", gcs.config, 1)
    with pytest.raises(ObjectNotFound):
        writer.put("object", b"x")
    writer.close()


def test_large_parts_for_very_large_objects(gcs: GcsSubject) -> None:
    """However large the object, three rounds of composing are enough."""
    writer = GcsWriter(gcs.bucket, "", gcs.config, 1)
    assert writer.begin(KEY, 100).part_bytes == 32 << 20
    for size in (5 << 40, (5 << 40) - 1):
        assert -(-size // writer.begin(KEY, size).part_bytes) <= COMPOSE_MAX**3
    writer.close()
