"""What the Google store makes of a network and a server that misbehave, byte by byte."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.config import GcsConfig
from fusefs.errors import (
    AccessDenied,
    ConfigError,
    CorruptData,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import Extent, ObjectId
from fusefs.store.gcs import GcsStore
from tests.store_contract.gcs_wire import (
    GENERATION,
    ID,
    google_error,
    google_good,
    item,
    json_answer,
    read,
)
from tests.store_contract.wire import (
    DATA,
    EXTENT,
    MIB,
    SIZE,
    START,
    Answer,
    WireServer,
    answer,
)

BLANK = 0xA5


def test_a_good_answer(google_wire: WireServer, google_store: GcsStore) -> None:
    """A read asks for its range of its generation, as stored, on a connection used again."""
    google_wire.answers += [google_good(), google_good()]
    for _ in range(2):
        buffer = bytearray(SIZE)
        assert read(google_store, buffer) == [MIB, 2 * MIB, 3 * MIB, SIZE]
        assert buffer == DATA
    assert google_wire.connections == 1
    head = google_wire.requests[0]
    path = "/download/storage/v1/b/bucket/o/dir%2Fmodel%20%C3%A9%252F.safetensors"
    assert head.startswith(f"GET {path}?alt=media&generation={GENERATION} HTTP/1.1\r\n")
    assert f"range: bytes={START}-{START + SIZE - 1}" in head.lower()
    assert "accept-encoding: gzip\r\n" in head.lower()
    assert "user-agent: fusefs/" in head.lower()
    assert "authorization" not in head.lower()


def test_a_whole_object_may_come_as_200(google_wire: WireServer, google_store: GcsStore) -> None:
    """A server that answers 200 is believed if the range was the whole object."""
    google_wire.answers.append(google_good(status="200 OK", Content_Range=None))
    buffer = bytearray(SIZE)
    assert read(google_store, buffer, Extent(0, SIZE))[-1] == SIZE
    assert buffer == DATA


def torn_generation() -> Answer:
    """A head that breaks off inside the generation, its last header."""
    head = google_good(b"").data
    return Answer(head[: head.index(GENERATION.encode()) + 5], "close")


GZIP = gzip.compress(DATA)

REFUSED: dict[str, tuple[Answer, type[FusefsError]]] = {
    "another generation": (google_good(X_Goog_Generation="1795408450410249"), ObjectChanged),
    "no generation": (google_good(X_Goog_Generation=None), StoreUnavailable),
    "half a generation": (torn_generation(), StoreUnavailable),
    "200 for a range": (google_good(status="200 OK", Content_Range=None), CorruptData),
    "longer": (google_good(Content_Length=str(SIZE + 1), body=DATA + b"x"), CorruptData),
    "shorter": (google_good(Content_Length=str(SIZE - 1), body=DATA[1:]), CorruptData),
    "no Content-Length": (google_good(Content_Length=None, ending="close"), StoreUnavailable),
    "Content-Length that is no number": (
        google_good(Content_Length="many", ending="close"),
        CorruptData,
    ),
    "no Content-Range": (google_good(Content_Range=None), StoreUnavailable),
    "range elsewhere": (google_good(Content_Range=f"bytes 0-{SIZE - 1}/99000000"), CorruptData),
    "range of no sense": (google_good(Content_Range="bytes everything"), CorruptData),
    "decompressed": (
        google_good(status="200 OK", X_Goog_Stored_Content_Encoding="gzip", Content_Range=None),
        CorruptData,
    ),
    "compressed": (
        google_good(body=GZIP, Content_Encoding="gzip", Content_Length=str(len(GZIP))),
        CorruptData,
    ),
    "204": (
        google_good(status="204 No Content", body=b"", Content_Length=None),
        StoreUnavailable,
    ),
    "302": (answer("302 Found", {"Location": "/x", "Content-Length": "0"}), FusefsError),
    "304": (answer("304 Not Modified", {}), ObjectChanged),
    "412": (google_error("412 Precondition Failed", "conditionNotMet"), ObjectChanged),
    "404": (google_error("404 Not Found", "notFound"), ObjectChanged),
    "404 in words": (answer("404 Not Found", {"Content-Length": "9"}, b"Not Found"), ObjectChanged),
    "416": (google_error("416 Range", "requestedRangeNotSatisfiable"), ObjectChanged),
    "403": (google_error("403 Forbidden", "forbidden"), AccessDenied),
    "401": (google_error("401 Unauthorized", "authError"), AccessDenied),
    "401 without credentials": (google_error("401 Unauthorized", "required"), AccessDenied),
    "the reader pays": (google_error("400 Bad Request", "required"), AccessDenied),
    "too many by 403": (google_error("403 Forbidden", "userRateLimitExceeded"), StoreThrottled),
    "429": (google_error("429 Too Many Requests", "rateLimitExceeded"), StoreThrottled),
    "503": (google_error("503 Service Unavailable", "backendError"), StoreThrottled),
    "503 of a proxy": (answer("503 Busy", {"Content-Length": "4"}, b"busy"), StoreThrottled),
    "500": (google_error("500 Internal Server Error", "internalError"), StoreUnavailable),
    "502 of a proxy": (answer("502 Bad", {"Content-Length": "4"}, b"<htm"), StoreUnavailable),
    "408": (google_error("408 Request Timeout", "requestTimeout"), StoreTimeout),
    "other 400": (google_error("400 Bad Request", "invalid"), FusefsError),
    "an error that stalls": (
        answer("500 Oh", {"Content-Length": "9"}, b"half", "stall"),
        StoreTimeout,
    ),
    "not HTTP": (Answer(b"220 mail.example.com ESMTP\r\n", "close"), StoreUnavailable),
    "nothing": (Answer(b"", "close"), StoreUnavailable),
    "reset": (Answer(b"", "reset"), StoreUnavailable),
    "half a head": (
        Answer(b"HTTP/1.1 206 Partial Content\r\nX-Goog-Gener", "close"),
        StoreUnavailable,
    ),
    "silence": (Answer(b"", "stall"), StoreTimeout),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_a_byte_is_written(
    name: str, google_wire: WireServer, google_store: GcsStore
) -> None:
    """A wrong answer has its class, one sentence without secrets, and leaves the buffer alone."""
    wrong, expected = REFUSED[name]
    google_wire.answers += [wrong, google_good()]
    buffer = bytearray([BLANK]) * SIZE
    with pytest.raises(FusefsError) as raised:
        read(google_store, buffer)
    assert type(raised.value) is expected
    assert buffer == bytearray([BLANK]) * SIZE
    sentence = str(raised.value)
    assert "hunter2" not in sentence.lower()
    assert "\n" not in sentence
    # Whatever was left on that connection, it is not taken for the answer to the next request.
    assert read(google_store, buffer)[-1] == SIZE
    assert buffer == DATA
    assert len(google_wire.requests) == 2


BROKEN: dict[str, tuple[Answer, type[FusefsError]]] = {
    "short": (google_good(body=DATA[: 2 * MIB + 7], ending="close"), StoreUnavailable),
    "no body": (google_good(body=b"", ending="close"), StoreUnavailable),
    "reset": (google_good(body=DATA[: MIB + 7], ending="reset"), StoreUnavailable),
    "stall": (google_good(body=DATA[: MIB + 7], ending="stall"), StoreTimeout),
}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_in_the_middle(
    name: str, encoding: str, google_wire: WireServer, google_store: GcsStore
) -> None:
    """A body that ends early is an error worth a retry, and `landed` never named a missing byte."""
    wrong, expected = BROKEN[name]
    if encoding == "gzip":  # stored so: received on the way that copies
        stored = b"X-Goog-Stored-Content-Encoding: "
        gzipped = wrong.data.replace(
            stored + b"identity", stored + b"gzip\r\nContent-Encoding: gzip"
        )
        wrong = Answer(gzipped, wrong.ending)
    google_wire.answers += [wrong, google_good()]
    buffer = bytearray(SIZE)
    reports: list[int] = []
    with pytest.raises(StoreUnavailable) as raised:
        google_store.read_into(ID, EXTENT, memoryview(buffer), reports.append)
    assert type(raised.value) is expected
    assert all(buffer[:count] == DATA[:count] for count in reports)
    assert max(reports, default=0) <= len(wrong.data)
    assert read(google_store, buffer)[-1] == SIZE
    assert buffer == DATA
    assert google_wire.connections == 2


def test_a_body_that_goes_on_is_not_taken_for_the_next_answer(
    google_wire: WireServer, google_store: GcsStore
) -> None:
    """Bytes behind the promised length do not end up in another read."""
    smuggled = DATA + b"HTTP/1.1 206 OK\r\n\r\nsmuggled"
    google_wire.answers += [google_good(body=smuggled), google_good(), google_good()]
    buffer = bytearray(SIZE)
    for _ in range(2):
        read(google_store, buffer)
        assert buffer == DATA


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7.0), ("86400", 300.0), ("soon", None), ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0)],
)
@pytest.mark.parametrize("whole", [True, False], ids=["listing", "read"])
def test_retry_after(
    whole: bool,
    header: str,
    expected: float | None,
    google_wire: WireServer,
    google_store: GcsStore,
) -> None:
    """`retry_after_s` is what the store said, in seconds or as a date, up to five minutes."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    busy = google_error("503 Busy", "backendError", Retry_After=header, Date=date)
    google_wire.answers.append(busy)
    ask = (
        (lambda: google_store.list_page("", None))
        if whole
        else (lambda: read(google_store, bytearray(SIZE)))
    )
    with pytest.raises(StoreThrottled) as raised:
        ask()
    assert raised.value.retry_after_s == expected
    assert len(google_wire.requests) == 1


SENTENCES = {
    "authError": "renew",
    "required": r"gcs\.billing_project",
    "userProjectMissing": r"gcs\.billing_project",
    "forbidden": "role",
    "not a word!": "credentials and policy",
}


@pytest.mark.parametrize("reason", SENTENCES)
def test_a_refusal_says_what_to_do(
    reason: str, google_wire: WireServer, google_store: GcsStore
) -> None:
    """Who may not mount is told why; what is no word of Google's is not repeated."""
    google_wire.answers.append(google_error("403 Forbidden", reason))
    with pytest.raises(AccessDenied, match=SENTENCES[reason]) as raised:
        google_store.check("")
    assert "!" not in str(raised.value)


def test_who_pays(google_wire: WireServer) -> None:
    """Every kind of request names the project that pays."""
    endpoint = f"http://127.0.0.1:{google_wire.port}"
    config = GcsConfig(endpoint_url=endpoint, anonymous=True, billing_project="my-project")
    store = GcsStore("bucket", config, 1)
    google_wire.answers += [json_answer({}), json_answer(item("a")), google_good()]
    store.list_page("", None)
    store.head("a")
    read(store, bytearray(SIZE))
    store.close()
    assert len(google_wire.requests) == 3
    for request in google_wire.requests:
        assert "userProject=my-project" in request.partition("\r\n")[0]


def test_an_object_without_generation_is_not_read(
    google_wire: WireServer, google_store: GcsStore
) -> None:
    """Without a generation versions cannot be told apart, so nothing is asked for."""
    with pytest.raises(Unsupported):
        google_store.read_into(ObjectId("object", ""), Extent(0, 1), memoryview(bytearray(1)))
    assert google_wire.requests == []


def test_nobody_listens() -> None:
    """A refused connection is StoreUnavailable and says so."""
    dead = GcsStore("bucket", GcsConfig(endpoint_url="http://127.0.0.1:9", anonymous=True), 1)
    with pytest.raises(StoreUnavailable, match="Connection refused") as raised:
        dead.check("")
    assert type(raised.value) is StoreUnavailable
    dead.close()


def test_a_missing_object(google_wire: WireServer, google_store: GcsStore) -> None:
    """A `head` of status 404 is ObjectNotFound."""
    google_wire.answers.append(google_error("404 Not Found", "notFound"))
    with pytest.raises(ObjectNotFound):
        google_store.head("object")


def test_threads_keep_their_connections(google_wire: WireServer) -> None:
    """Many reads of several threads open at most one connection for each thread."""
    threads, reads = 4, 6
    google_wire.answers += [google_good() for _ in range(threads * reads)]
    config = GcsConfig(endpoint_url=f"http://127.0.0.1:{google_wire.port}", anonymous=True)
    store = GcsStore("bucket", config, connections=threads)
    together = threading.Barrier(threads)

    def run() -> None:
        for _ in range(reads):
            together.wait(20)
            assert read(store, bytearray(SIZE))[-1] == SIZE

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result()
    store.close()
    assert len(google_wire.requests) == threads * reads
    assert 1 <= google_wire.connections <= threads


def test_a_setting_that_is_no_url() -> None:
    """An endpoint that cannot be one, or holds a password, is refused in a sentence."""
    for endpoint in ("127.0.0.1:9", "http://[", "ftp://host", "http://", "http://u:hunter2@host"):
        store = GcsStore("bucket", GcsConfig(endpoint_url=endpoint), 1)
        with pytest.raises(ConfigError) as raised:
            store.check("")
        assert "hunter2" not in str(raised.value)
        store.close()
