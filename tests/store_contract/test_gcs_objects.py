"""What the Google store makes of listings, and of objects that are not of the plain kind."""

from __future__ import annotations

import gzip

import pytest

from fusefs.errors import CorruptData, FusefsError, StoreUnavailable
from fusefs.objects import Extent, ObjectId
from fusefs.store.gcs import GcsStore
from tests.store_contract.gcs_subject import GcsSubject
from tests.store_contract.gcs_wire import GENERATION, item, json_answer
from tests.store_contract.wire import DATA, Answer, WireServer, answer

LISTINGS: dict[str, tuple[Answer, type[FusefsError]]] = {
    "not JSON": (answer("200 OK", {"Content-Length": "6"}, b"<html>"), StoreUnavailable),
    "cut": (answer("200 OK", {"Content-Length": "60"}, b'{"items"', "close"), StoreUnavailable),
    "no object of JSON": (json_answer(["a"]), StoreUnavailable),
    "items that are none": (json_answer({"items": [5]}), StoreUnavailable),
    "the same page": (json_answer({"nextPageToken": "t"}), CorruptData),
    "size of no sense": (json_answer({"items": [item("a", size="big")]}), StoreUnavailable),
    "no name": (json_answer({"items": [item("a", name=None)]}), StoreUnavailable),
    "no size": (json_answer({"items": [item("a", size=None)]}), StoreUnavailable),
    "no generation": (json_answer({"items": [item("a", generation=None)]}), StoreUnavailable),
    "no time": (json_answer({"items": [item("a", timeCreated=None)]}), StoreUnavailable),
    "time of no sense": (json_answer({"items": [item("a", timeCreated="now")]}), StoreUnavailable),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_bad_listings(name: str, google_wire: WireServer, google_store: GcsStore) -> None:
    """A listing that makes no sense is an error, not an empty directory and not an endless one."""
    wrong, expected = LISTINGS[name]
    google_wire.answers.append(wrong)
    with pytest.raises(FusefsError) as raised:
        google_store.list_page("", "t")
    assert type(raised.value) is expected


def test_an_empty_page_is_not_the_end(google_wire: WireServer, google_store: GcsStore) -> None:
    """Google may send a page of nothing: the listing goes on, and so does `check`."""
    google_wire.answers += [json_answer({"nextPageToken": "t"})] * 2
    google_wire.answers.append(json_answer({"items": [item("a/b")]}))
    page = google_store.list_page("a/", None)
    assert (page.objects, page.prefixes, page.next_token) == ((), (), "t")
    google_store.check("a/")
    assert "pageToken=t" in google_wire.requests[2]


def test_an_object_of_more_than_5_gib(google_wire: WireServer, google_store: GcsStore) -> None:
    """Sizes are told in full, and times to the microsecond."""
    google_wire.answers.append(json_answer(item("large", size=str(6 << 40))))
    meta = google_store.head("large")
    assert (meta.id, meta.size) == (ObjectId("large", GENERATION), 6 << 40)
    assert meta.mtime_ns == 1795408450_410_000_000


def test_what_is_stored_with_gzip(gcs: GcsSubject) -> None:
    """An object stored with gzip is the bytes that are stored, of the size that is listed."""
    data = gzip.compress(DATA)
    gcs.google.server.put(gcs.bucket, "page.json", data, content_encoding="gzip")
    meta = gcs.store.head("page.json")
    assert meta.size == len(data)
    for extent in (Extent(0, len(data)), Extent(10, len(data) - 5)):
        buffer = bytearray(extent.size)
        gcs.store.read_into(meta.id, extent, memoryview(buffer))
        assert buffer == data[extent.start : extent.stop]


def test_a_bucket_that_keeps_versions(gcs: GcsSubject) -> None:
    """Where old versions are kept, the pinned one is read on; names lead to the current one."""
    bucket = f"{gcs.bucket}-versions"
    gcs.google.server.make_bucket(bucket, versions=True)
    store = GcsStore(bucket, gcs.config, 1)
    gcs.google.server.put(bucket, "object", b"old one")
    old = store.head("object")
    gcs.google.server.put(bucket, "object", b"new")
    assert store.head("object").size == 3
    assert [meta.size for meta in store.list_page("", None).objects] == [3]
    buffer = bytearray(7)
    store.read_into(old.id, Extent(0, 7), memoryview(buffer))
    assert buffer == b"old one"
    store.close()
