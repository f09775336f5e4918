"""What the Azure store makes of listings and heads, as Azure documents them and worse."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate

import pytest

from fusefs.errors import CorruptData, FusefsError, ObjectNotFound, StoreUnavailable
from fusefs.store.azure import AzureStore
from tests.harness.azurite import VARIABLES
from tests.store_contract.azure_wire import make_store
from tests.store_contract.wire import WireServer, answer


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with the key of an account, and nothing else of Azure's."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "aHVudGVyMg==")


@pytest.fixture
def store(server: WireServer) -> Iterator[AzureStore]:
    """A store on that server that gives up soon."""
    made = make_store(f"http://127.0.0.1:{server.port}")
    yield made
    made.close()


def page(inside: str) -> bytes:
    """A listing."""
    return f"\ufeff<?xml version='1.0'?><EnumerationResults>{inside}</EnumerationResults>".encode()


def entry(name: str, properties: str = "", more: str = "", tag: str = "Name") -> str:
    """A blob of a listing, as Azure writes it."""
    return (
        f"<Blob>{name if tag == '' else f'<{tag}>{name}</Name>'}<Properties><Etag>0x1</Etag>"
        "<Last-Modified>Wed, 21 Oct 2026 07:28:00 GMT</Last-Modified>"
        f"<Content-Length>5</Content-Length>{properties}</Properties>{more}</Blob>"
    )


def serve_page(server: WireServer, body: bytes) -> None:
    """Line up a listing."""
    server.answers.append(answer("200 OK", {"Content-Length": str(len(body))}, body))


def test_a_listing(server: WireServer, store: AzureStore) -> None:
    """Names are exact, encoded ones too; directories of any make are no objects."""
    serve_page(
        server,
        page(
            "<Blobs>"
            + entry("a b&amp;c%20d")
            + entry("ctl%01%2F%25", tag='Name Encoded="true"')
            + entry("adls", "<ResourceType>directory</ResourceType>")
            + entry("hadoop", more="<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>")
            + entry("file", "<ResourceType>file</ResourceType>", "<Metadata><a>b</a></Metadata>")
            + "<BlobPrefix><Name>adls/</Name></BlobPrefix>"
            + '<BlobPrefix><Name Encoded="true">x%07/</Name></BlobPrefix>'
            + "</Blobs><NextMarker>2!more</NextMarker>"
        ),
    )
    listed = store.list_page("", None)
    assert [meta.id.key for meta in listed.objects] == ["a b&c%20d", "ctl\x01/%", "file"]
    assert listed.prefixes == ("adls/", "x\x07/")
    assert listed.next_token == "2!more"
    assert listed.objects[0].id.etag == "0x1"
    assert listed.objects[0].size == 5
    assert listed.objects[0].mtime_ns == 1792567680 * 10**9
    serve_page(server, page("<Blobs/><NextMarker/>"))
    assert store.list_page("a b/", "2!more").next_token is None
    assert "prefix=a%20b%2F" in server.requests[1]
    assert "marker=2%21more" in server.requests[1]


LISTINGS: dict[str, tuple[bytes, type[FusefsError]]] = {
    "not XML": (b"<html>welcome to the hotel", StoreUnavailable),
    "other XML": (b"<html></html>", StoreUnavailable),
    "nothing": (b"", StoreUnavailable),
    "the same page": (page("<Blobs/><NextMarker>t</NextMarker>"), CorruptData),
    "size of no sense": (
        page("<Blobs>" + entry("a").replace(">5<", ">big<") + "</Blobs>"),
        StoreUnavailable,
    ),
    "no name": (page("<Blobs>" + entry("", tag="") + "</Blobs>"), StoreUnavailable),
    "half an entry": (page("<Blobs><Blob><Name>a</Name></Blob></Blobs>"), StoreUnavailable),
    "a bad escape": (
        page("<Blobs>" + entry("%ff", tag='Name Encoded="true"') + "</Blobs>"),
        StoreUnavailable,
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_bad_listings(name: str, server: WireServer, store: AzureStore) -> None:
    """A listing that makes no sense is an error, not an empty directory and not an endless one."""
    body, expected = LISTINGS[name]
    serve_page(server, body)
    with pytest.raises(FusefsError) as raised:
        store.list_page("", "t")
    assert type(raised.value) is expected


def test_an_empty_page_with_more_to_come_is_no_missing_prefix(
    server: WireServer, store: AzureStore
) -> None:
    """Azure may send empty pages on the way: only the end of a listing tells what is missing."""
    serve_page(server, page("<Blobs/><NextMarker>2!more</NextMarker>"))
    store.check("dir/")
    serve_page(server, page("<Blobs/><NextMarker/>"))
    with pytest.raises(ObjectNotFound, match="no object below"):
        store.check("dir/")


def test_heads(server: WireServer, store: AzureStore) -> None:
    """A HEAD must say what it should; a directory is no object; a missing one is ObjectNotFound."""
    full = {"ETag": '"abc"', "Content-Length": "7", "Last-Modified": formatdate(0, usegmt=True)}
    server.answers.append(answer("200 OK", dict(full)))
    assert store.head("object").size == 7
    for missing in full:
        server.answers.append(answer("200 OK", {**full, missing: None}))
        with pytest.raises(StoreUnavailable):
            store.head("object")
    server.answers.append(answer("200 OK", {**full, "x-ms-meta-hdi_isfolder": "true"}))
    with pytest.raises(ObjectNotFound, match="directory"):
        store.head("object")
    server.answers.append(answer("404 Not Found", {"Content-Length": "0"}))
    with pytest.raises(ObjectNotFound):
        store.head("object")
