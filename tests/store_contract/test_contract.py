"""What every store promises, tried on every store."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.errors import (
    AccessDenied,
    CorruptData,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import LIST_PAGE_KEYS, Store
from tests.store_contract.subjects import Subject, Unholdable

MIB = 1 << 20
BLANK = 0xA5
GUARD = 64
"""Bytes kept on both sides of a buffer, to see that nobody writes there."""

ODD_KEYS = (
    "plain",
    "a b",
    "a+b",
    "a%2Fb",
    "a%b",
    "q?x=1#f",
    "&<>\"'",
    "tab\tx",
    "new\nline",
    "ctl\x01",
    "~tilde",
    "ünï/ço dé",
    "日本語/モデル",
    "emoji\U0001f600",
    "wide\u3000space",
    "..hidden",
    "a.b/...",
    "deep/" * 20 + "file",
    "s" * 255,
    "double//slash",
    "x" * 1024,
    ("k" * 127 + "/") * 7 + "k" * 128,
)
ODD_KEYS_NOWHERE = 2
"""How many of them a file system cannot hold: an empty segment, and one of more than 255 bytes."""


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that are nowhere the same."""
    return random.Random(seed).randbytes(size)


def read(store: Store, meta: ObjectMeta, extent: Extent) -> bytes:
    """Read an extent into the middle of a larger buffer, whose edges must stay as they were."""
    memory = bytearray([BLANK]) * (extent.size + 2 * GUARD)
    store.read_into(meta.id, extent, memoryview(memory)[GUARD:-GUARD])
    assert memory[:GUARD] == memory[-GUARD:] == bytearray([BLANK]) * GUARD
    return bytes(memory[GUARD:-GUARD])


def read_all(store: Store, meta: ObjectMeta) -> bytes:
    """Read a whole object."""
    return read(store, meta, Extent(0, meta.size)) if meta.size else b""


def list_all(store: Store, prefix: str) -> tuple[dict[str, ObjectMeta], set[str], int]:
    """All pages of a listing: the objects by key, the prefixes, and how many pages it was."""
    objects: dict[str, ObjectMeta] = {}
    prefixes: set[str] = set()
    token = None
    pages = 0
    while token is not None or pages == 0:
        page = store.list_page(prefix, token)
        objects |= {meta.id.key: meta for meta in page.objects}
        prefixes |= set(page.prefixes)
        token = page.next_token
        pages += 1
    return objects, prefixes, pages


def test_random_extents_are_exact(subject: Subject) -> None:
    """Any extent is filled with exactly its bytes, and nothing beside it is touched."""
    data = noise(3 * MIB + 17)
    subject.put("dir/object", data)
    meta = subject.store.head("dir/object")
    assert meta.size == len(data)
    dice = random.Random(1)
    extents = [Extent(0, 1), Extent(len(data) - 1, len(data)), Extent(0, len(data))]
    for _ in range(40):
        start = dice.randrange(len(data))
        stop = min(len(data), start + dice.choice([1, 4095, 4096, 65537, MIB, 2 * MIB + 1]))
        extents.append(Extent(start, stop))
    for extent in extents:
        assert read(subject.store, meta, extent) == data[extent.start : extent.stop], extent


def test_landed_bytes_are_final(subject: Subject) -> None:
    """`landed` grows to the full size, and what it names is in the buffer as it will stay."""
    data = noise(4 * MIB + 5)
    subject.put("object", data)
    memory = memoryview(bytearray(len(data)))
    reports: list[int] = []

    def landed(count: int) -> None:
        reports.append(count)
        assert memory[:count] == data[:count]

    subject.store.read_into(subject.store.head("object").id, Extent(0, len(data)), memory, landed)
    assert reports[-1] == len(data)
    assert reports == sorted(set(reports))
    assert len(reports) >= 4


def test_a_landed_that_raises_ends_the_read(subject: Subject) -> None:
    """What `landed` raises comes out of `read_into`, and the store still serves."""
    data = noise(3 * MIB)
    subject.put("object", data)
    meta = subject.store.head("object")

    def landed(count: int) -> None:
        raise KeyboardInterrupt(count)

    with pytest.raises(KeyboardInterrupt):
        subject.store.read_into(
            meta.id, Extent(0, meta.size), memoryview(bytearray(meta.size)), landed
        )
    assert read_all(subject.store, meta) == data


def test_listing_and_head_agree(subject: Subject) -> None:
    """A listing and a HEAD tell the same of an object: id, size and time."""
    for key, size in (("dir/one", 1), ("dir/many", 70_000), ("dir/none", 0)):
        subject.put(key, noise(size))
    objects, prefixes, _ = list_all(subject.store, "dir/")
    assert prefixes == set()
    assert objects == {key: subject.store.head(key) for key in ("dir/one", "dir/many", "dir/none")}
    assert objects["dir/none"].size == 0


def test_an_overwritten_object_is_refused(subject: Subject) -> None:
    """Of an overwritten object no byte is delivered; the new version has an id of its own."""
    old, new = noise(2 * MIB, 1), noise(2 * MIB, 2)
    subject.put("object", old)
    before = subject.store.head("object")
    assert read_all(subject.store, before) == old
    subject.put("object", new)
    memory = bytearray([BLANK]) * MIB
    with pytest.raises(ObjectChanged):
        subject.store.read_into(before.id, Extent(0, MIB), memoryview(memory))
    assert memory == bytearray([BLANK]) * MIB
    after = subject.store.head("object")
    assert after.id != before.id
    assert read_all(subject.store, after) == new


def test_a_deleted_object_is_refused(subject: Subject) -> None:
    """Reading a version of a deleted object is ObjectChanged; asking for it, ObjectNotFound."""
    subject.put("object", noise(MIB))
    meta = subject.store.head("object")
    subject.delete("object")
    memory = bytearray([BLANK]) * 100
    with pytest.raises(ObjectChanged):
        subject.store.read_into(meta.id, Extent(0, 100), memoryview(memory))
    assert memory == bytearray([BLANK]) * 100
    with pytest.raises(ObjectNotFound):
        subject.store.head("object")


def test_an_extent_beyond_the_end_is_refused(subject: Subject) -> None:
    """Who asks for more than there is gets an error, never a shorter answer."""
    subject.put("object", noise(1000))
    meta = subject.store.head("object")
    for extent in (Extent(0, 1001), Extent(1000, 1001), Extent(5000, 6000)):
        with pytest.raises((ObjectChanged, CorruptData, StoreUnavailable)):
            read(subject.store, meta, extent)


def test_a_listing_is_one_level(subject: Subject) -> None:
    """A page holds what is directly below its prefix; what is deeper shows as a prefix."""
    for key in ("a/one", "a/two", "a/b/three", "a/b/c/four", "ab/five", "six"):
        subject.put(key, b"x")
    assert set(list_all(subject.store, "")[0]) == {"six"}
    assert list_all(subject.store, "")[1] == {"a/", "ab/"}
    objects, prefixes, _ = list_all(subject.store, "a/")
    assert (set(objects), prefixes) == ({"a/one", "a/two"}, {"a/b/"})
    objects, prefixes, _ = list_all(subject.store, "a/b/")
    assert (set(objects), prefixes) == ({"a/b/three"}, {"a/b/c/"})


def test_what_is_missing(subject: Subject) -> None:
    """Missing names are ObjectNotFound to `head` and `check`, and an empty page to a listing."""
    subject.put("dir/file", b"x")
    for key in ("nope", "dir", "dir/nope", "dir/file/nope", "nope/file"):
        with pytest.raises(ObjectNotFound):
            subject.store.head(key)
    for prefix in ("nope/", "dir/nope/", "dir/file/"):
        page = subject.store.list_page(prefix, None)
        assert (page.objects, page.prefixes, page.next_token) == ((), (), None)
        with pytest.raises(ObjectNotFound):
            subject.store.check(prefix)


def test_check_accepts_what_can_be_mounted(subject: Subject) -> None:
    """`check` returns for the bucket itself, empty or not, and for a prefix with anything below."""
    subject.store.check("")
    subject.put("deep/er/file", b"x")
    for prefix in ("", "deep/", "deep/er/"):
        subject.store.check(prefix)
    with pytest.raises(ObjectNotFound):
        subject.store.check("deeper/")


def test_a_missing_bucket(subject: Subject) -> None:
    """A bucket that does not exist is ObjectNotFound in one sentence."""
    store = subject.missing()
    with pytest.raises(ObjectNotFound) as raised:
        store.check("")
    assert "\n" not in str(raised.value)
    with pytest.raises(ObjectNotFound):
        store.list_page("", None)
    with pytest.raises(ObjectNotFound):
        store.head("object")
    store.close()


def test_who_may_not_read(subject: Subject) -> None:
    """A refusal is AccessDenied for every kind of request, and holds no secret."""
    subject.put("object", noise(100))
    meta = subject.store.head("object")
    memory = memoryview(bytearray(100))
    for action in (
        lambda store: store.check(""),
        lambda store: store.list_page("", None),
        lambda store: store.head("object"),
        lambda store: store.read_into(meta.id, Extent(0, 100), memory),
    ):
        with pytest.raises(AccessDenied) as raised:
            subject.refused(action)
        assert "secret" not in str(raised.value).replace("secret key", "")
    assert memory == bytes(100)


def test_more_than_a_page(subject: Subject) -> None:
    """A listing of 1,100 names comes in pages that miss none and repeat none."""
    keys = {f"many/{number:04}" for number in range(1060)}
    keys |= {f"many/dir{number:02}/file" for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: subject.put(key, b"x"), sorted(keys) if subject.pages else ()))
    for key in keys if not subject.pages else ():
        subject.put(key, b"x")
    seen: list[str] = []
    token = None
    pages = 0
    while token is not None or pages == 0:
        page = subject.store.list_page("many/", token)
        assert not subject.pages or len(page.objects) + len(page.prefixes) <= LIST_PAGE_KEYS
        seen += [meta.id.key for meta in page.objects] + list(page.prefixes)
        token, pages = page.next_token, pages + 1
    assert len(seen) == len(set(seen)) == 1100
    assert {key.removesuffix("file") for key in keys} == set(seen)
    assert pages == (2 if subject.pages else 1)


def test_odd_keys(subject: Subject) -> None:
    """Keys of any characters are listed, found and read under exactly their names."""
    held = []
    for key in ODD_KEYS:
        try:
            subject.put(key, key.encode() * 3)
        except Unholdable:
            continue
        held.append(key)
    assert len(held) >= len(ODD_KEYS) - ODD_KEYS_NOWHERE
    for key in held:
        meta = subject.store.head(key)
        assert read_all(subject.store, meta) == key.encode() * 3
    tops = {key for key in held if "/" not in key}
    objects, prefixes, _ = list_all(subject.store, "")
    assert set(objects) == tops
    assert prefixes == {key.partition("/")[0] + "/" for key in held if "/" in key}
    for key in ("ünï/ço dé", "日本語/モデル", "a.b/..."):
        assert set(list_all(subject.store, key.partition("/")[0] + "/")[0]) == {key}


def test_directory_markers(subject: Subject) -> None:
    """A key that ends in a slash makes a prefix, and does no harm below it."""
    try:
        subject.put("dir/", b"")
    except Unholdable:
        with pytest.raises(ObjectNotFound):
            subject.store.head("dir/")
        return
    assert list_all(subject.store, "")[1] == {"dir/"}
    objects, prefixes, _ = list_all(subject.store, "dir/")
    assert set(objects) <= {"dir/"}
    assert prefixes == set()
    subject.store.check("dir/")


def test_threads(subject: Subject) -> None:
    """Eight threads read random extents of three objects at once, and each gets its own bytes."""
    contents = {f"object{number}": noise(MIB + number, number) for number in range(3)}
    for key, data in contents.items():
        subject.put(key, data)
    metas = {key: subject.store.head(key) for key in contents}

    def work(seed: int) -> int:
        dice = random.Random(seed)
        for _ in range(25):
            key = dice.choice(sorted(contents))
            start = dice.randrange(MIB)
            stop = min(MIB, start + dice.randrange(1, 200_000))
            assert read(subject.store, metas[key], Extent(start, stop)) == contents[key][start:stop]
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_close_is_idempotent(subject: Subject) -> None:
    """Closing twice, before or after use, is fine."""
    subject.put("object", b"x")
    assert subject.store.head("object").size == 1
    subject.store.close()
    subject.store.close()


def test_text_that_is_not_unicode(subject: Subject) -> None:
    """A name of bytes that are not UTF-8 can be asked for, and nobody has it."""
    with pytest.raises(ObjectNotFound):
        subject.store.head("bad\udcff")
    assert subject.store.list_page("bad\udcff/", None).objects == ()
