"""What every writer promises, tried on every store that can be written to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.errors import FusefsError, ObjectNotFound
from fusefs.objects import ObjectMeta
from fusefs.store.base import Upload
from tests.store_contract.subjects import Subject
from tests.store_contract.test_contract import ODD_KEYS, noise, read_all

LARGE = 1 << 20
"""The size asked for parts where a store lets one choose; what it takes is `Upload.part_bytes`."""


def parts_of(upload: Upload, data: bytes) -> list[memoryview]:
    """The data as the parts of an upload."""
    size = upload.part_bytes
    return [memoryview(data)[start : start + size] for start in range(0, len(data), size)]


def write(subject: Subject, key: str, data: bytes) -> ObjectMeta:
    """Write an object part by part, and publish it."""
    writer = subject.writer(LARGE)
    upload = writer.begin(key, len(data))
    for index, part in enumerate(parts_of(upload, data)):
        upload.put_part(index, part)
    meta = upload.commit()
    writer.publish("")
    writer.close()
    return meta


def stored(subject: Subject, key: str) -> bytes:
    """The bytes that a reader gets now."""
    return read_all(subject.store, subject.store.head(key))


def some_parts(subject: Subject, count: int) -> int:
    """A size of `count` parts, the last of them short."""
    writer = subject.writer(LARGE)
    size = writer.begin("size-probe", count * LARGE).part_bytes
    writer.discard("size-probe")
    writer.close()
    return (count - 1) * size + 12_345


def test_put_writes_an_object(subject: Subject) -> None:
    """A small object and an empty one are there with their bytes; the answer is their metadata."""
    writer = subject.writer()
    for key, data in (("small", b"hello"), ("folder/empty", b"")):
        meta = writer.put(key, data)
        assert meta.size == len(data)
        assert meta.id.key == key
    writer.publish("")
    assert stored(subject, "small") == b"hello"
    assert stored(subject, "folder/empty") == b""


def test_parts_may_come_in_any_order(subject: Subject) -> None:
    """Parts put backwards make the object that was meant; its last part is a rest."""
    data = noise(some_parts(subject, 3))
    writer = subject.writer(LARGE)
    upload = writer.begin("dir/object", len(data))
    parts = parts_of(upload, data)
    assert len(parts) == 3
    for index in reversed(range(3)):
        assert upload.put_part(index, parts[index])
    meta = upload.commit()
    writer.publish("")
    assert meta.size == len(data)
    assert stored(subject, "dir/object") == data


def test_the_answer_is_what_a_reader_sees(subject: Subject) -> None:
    """What commit answers is what HEAD answers."""
    meta = write(subject, "object", noise(100_000))
    assert subject.store.head("object") == meta


def test_threads_may_put_parts(subject: Subject) -> None:
    """Several objects grow at once, each by parts from many threads."""
    size = some_parts(subject, 4)
    writer = subject.writer(LARGE)
    contents = {f"object-{n}": noise(size, n) for n in range(2)}
    uploads = {key: writer.begin(key, size) for key in contents}
    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(upload.put_part, index, part)
            for key, upload in uploads.items()
            for index, part in enumerate(parts_of(upload, contents[key]))
        ]
        assert all(future.result() for future in waiting)
    for upload in uploads.values():
        upload.commit()
    writer.publish("")
    assert all(stored(subject, key) == data for key, data in contents.items())


def test_many_parts(subject: Subject) -> None:
    """An object of more parts than a page of a listing of parts holds by habit is made whole."""
    writer = subject.writer(4096)
    part_bytes = writer.begin("object", 1).part_bytes
    writer.discard("")
    data = noise(1_100 * part_bytes + 1 if part_bytes <= 4096 else part_bytes + 1)
    upload = writer.begin("object", len(data))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload.put_part, *zip(*enumerate(parts_of(upload, data)), strict=True)))
    upload.commit()
    writer.publish("")
    assert stored(subject, "object") == data


def test_an_attempt_that_was_cut_goes_on(subject: Subject) -> None:
    """What an earlier attempt put is not sent again: put_part says so by its answer."""
    data = noise(some_parts(subject, 3))
    cut = subject.writer(LARGE)
    upload = cut.begin("object", len(data))
    parts = parts_of(upload, data)
    assert upload.put_part(0, parts[0])
    assert upload.put_part(2, parts[2])
    cut.close()
    writer = subject.writer(LARGE)
    again = writer.begin("object", len(data))
    assert [again.put_part(index, part) for index, part in enumerate(parts)] == [False, True, False]
    again.commit()
    writer.publish("")
    assert stored(subject, "object") == data


def test_leftovers_of_other_content_are_replaced(subject: Subject) -> None:
    """Parts of the same size and other bytes are sent again; another length harms nothing."""
    old, new = noise(some_parts(subject, 2), 1), noise(some_parts(subject, 2), 2)
    cut = subject.writer(LARGE)
    upload = cut.begin("object", len(old))
    for index, part in enumerate(parts_of(upload, old)):
        upload.put_part(index, part)
    cut.close()
    writer = subject.writer(LARGE)
    again = writer.begin("object", len(new))
    for index, part in enumerate(parts_of(again, new)):
        assert again.put_part(index, part)
    again.commit()
    writer.publish("")
    assert stored(subject, "object") == new


def test_a_shorter_object_after_a_longer_attempt(subject: Subject) -> None:
    """An object that became shorter since the attempt that was cut has its own length."""
    long = noise(some_parts(subject, 3))
    cut = subject.writer(LARGE)
    upload = cut.begin("object", len(long))
    for index, part in enumerate(parts_of(upload, long)):
        upload.put_part(index, part)
    cut.close()
    short = long[: upload.part_bytes + 10]
    assert write(subject, "object", short).size == len(short)
    assert stored(subject, "object") == short


def test_nothing_is_seen_before_commit(subject: Subject) -> None:
    """Readers see no object while its parts arrive, and the old one where there was one."""
    write(subject, "old", b"before")
    writer = subject.writer(LARGE)
    data = noise(LARGE // 2)
    for key in ("new", "old"):
        upload = writer.begin(key, len(data))
        for index, part in enumerate(parts_of(upload, data)):
            upload.put_part(index, part)
    with pytest.raises(ObjectNotFound):
        subject.store.head("new")
    assert "new" not in {meta.id.key for meta in subject.store.list_page("", None).objects}
    assert stored(subject, "old") == b"before"


def test_an_object_is_replaced_whole(subject: Subject) -> None:
    """After commit readers get the new bytes under a new identity."""
    before = write(subject, "object", noise(50_000, 1))
    after = write(subject, "object", noise(70_000, 2))
    assert after.id != before.id
    assert stored(subject, "object") == noise(70_000, 2)


def test_odd_keys_are_written(subject: Subject) -> None:
    """Every key that the store can hold is written under exactly that name, others are refused."""
    writer = subject.writer()
    held = set()
    for key in ODD_KEYS:
        try:
            writer.put(key, key.encode())
        except FusefsError:
            continue
        held.add(key)
    writer.publish("")
    assert {"plain", "a b", "a+b", "a%2Fb", "ünï/ço dé", "日本語/モデル"} <= held
    assert all(stored(subject, key) == key.encode() for key in held)


def test_discard_removes_what_was_cut(subject: Subject) -> None:
    """Discard removes attempts below a prefix, counts them, and leaves others and objects alone.

    Bytes that attempts share may stay until the last of them is gone.
    """
    write(subject, "a/whole", b"whole")
    size = some_parts(subject, 2)
    writer = subject.writer(LARGE)
    first = {}
    for number, key in enumerate(("a/cut", "a/deep/cut", "b/cut")):
        upload = writer.begin(key, size)
        first[key] = parts_of(upload, noise(size, number))[0]
        upload.put_part(0, first[key])
    assert subject.writer(LARGE).discard("a/") == 2
    assert subject.writer(LARGE).discard("a/") == 0
    again = subject.writer(LARGE)
    assert not again.begin("b/cut", size).put_part(0, first["b/cut"])
    assert subject.writer(LARGE).discard("") >= 1
    anew = subject.writer(LARGE)
    assert all(anew.begin(key, size).put_part(0, first[key]) for key in first)
    assert stored(subject, "a/whole") == b"whole"


def test_a_missing_key_may_be_deleted(subject: Subject) -> None:
    """Delete removes an object, and one that is not there is fine."""
    write(subject, "dir/object", b"x")
    writer = subject.writer()
    writer.delete("dir/object")
    writer.delete("dir/object")
    writer.delete("never/there")
    writer.publish("")
    with pytest.raises(ObjectNotFound):
        subject.store.head("dir/object")
