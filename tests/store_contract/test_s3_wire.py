"""What the S3 store makes of a network and a server that misbehave, byte by byte."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.config import S3Config
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
from fusefs.store.http_body import receive
from fusefs.store.s3 import S3Store
from tests.store_contract.wire import (
    DATA,
    EXTENT,
    ID,
    MIB,
    SIZE,
    START,
    Answer,
    WireServer,
    answer,
    error,
    good,
)

BLANK = 0xA5
READ_TIMEOUT_S = 0.5
"""Short, since tests wait for it; a loopback answers in 1 ms, and a busy machine in 100."""


@pytest.fixture
def store(server: WireServer) -> Iterator[S3Store]:
    """A store on that server that gives up soon."""
    made = S3Store(
        "bucket",
        S3Config(endpoint_url=f"http://127.0.0.1:{server.port}"),
        connections=2,
        connect_timeout_s=5.0,
        read_timeout_s=READ_TIMEOUT_S,
    )
    yield made
    made.close()


def read(store: S3Store, buffer: bytearray, extent: Extent = EXTENT) -> list[int]:
    """Read, and return what landed."""
    reports: list[int] = []
    store.read_into(ID, extent, memoryview(buffer), reports.append)
    return reports


def failure_of(store: S3Store, buffer: bytearray) -> tuple[type[FusefsError], str]:
    """Class and sentence of a failed read. The error itself is gone then, as it is in a worker.

    (pytest.raises would keep it, and with it a connection on which botocore's parser failed, which
    closes when the error goes.)
    """
    try:
        read(store, buffer)
    except FusefsError as error:
        return type(error), str(error)
    pytest.fail("the read succeeded")


def test_a_good_answer(server: WireServer, store: S3Store) -> None:
    """A read asks for its range of its version, path style, and its connection is used again."""
    server.answers += [good(), good()]
    for _ in range(2):
        buffer = bytearray(SIZE)
        assert read(store, buffer) == [MIB, 2 * MIB, 3 * MIB, SIZE]
        assert buffer == DATA
    assert server.connections == 1
    head = server.requests[0].lower()
    assert head.startswith("get /bucket/dir/model.safetensors ")
    assert f"range: bytes={START}-{START + SIZE - 1}\r\n" in head
    assert 'if-match: "abc"' in head
    assert "x-amz-checksum-mode" not in head


def test_a_whole_object_may_come_as_200(server: WireServer, store: S3Store) -> None:
    """A server that answers 200 is believed if the range was the whole object."""
    server.answers.append(good(status="200 OK", Content_Range=None))
    buffer = bytearray(SIZE)
    assert read(store, buffer, Extent(0, SIZE))[-1] == SIZE
    assert buffer == DATA


REFUSED: dict[str, tuple[Answer, type[FusefsError]]] = {
    "another ETag": (good(ETag='"def"'), ObjectChanged),
    "no ETag": (good(ETag=None), StoreUnavailable),
    "200 for a range": (good(status="200 OK", Content_Range=None), CorruptData),
    "longer": (good(Content_Length=str(SIZE + 1), body=DATA + b"x"), CorruptData),
    "shorter": (good(Content_Length=str(SIZE - 1), body=DATA[1:]), CorruptData),
    "no Content-Length": (good(Content_Length=None, ending="close"), StoreUnavailable),
    "Content-Length that is no number": (
        good(Content_Length="many", ending="close"),
        StoreUnavailable,
    ),
    "Last-Modified that is no date": (good(Last_Modified="Wed, 21 O"), StoreUnavailable),
    "no Content-Range": (good(Content_Range=None), StoreUnavailable),
    "range elsewhere": (good(Content_Range=f"bytes 0-{SIZE - 1}/99000000"), CorruptData),
    "range of no sense": (good(Content_Range="bytes everything"), CorruptData),
    "204": (good(status="204 No Content", body=b"", Content_Length=None), StoreUnavailable),
    "412": (error("412 Precondition Failed", "PreconditionFailed"), ObjectChanged),
    "404": (error("404 Not Found", "NoSuchKey"), ObjectChanged),
    "no bucket": (error("404 Not Found", "NoSuchBucket"), ObjectChanged),
    "416": (error("416 Range Not Satisfiable", "InvalidRange"), ObjectChanged),
    "403": (error("403 Forbidden", "AccessDenied"), AccessDenied),
    "401": (error("401 Unauthorized", "Whatever"), AccessDenied),
    "unknown key": (error("403 Forbidden", "InvalidAccessKeyId"), AccessDenied),
    "wrong secret": (error("403 Forbidden", "SignatureDoesNotMatch"), AccessDenied),
    "expired": (error("400 Bad Request", "ExpiredToken"), AccessDenied),
    "wrong clock": (error("403 Forbidden", "RequestTimeTooSkewed"), AccessDenied),
    "archived": (error("403 Forbidden", "InvalidObjectState"), Unsupported),
    "429": (error("429 Too Many Requests", "TooManyRequests"), StoreThrottled),
    "503": (error("503 Slow Down", "SlowDown"), StoreThrottled),
    "503 of a proxy": (answer("503 Busy", {"Content-Length": "4"}, b"busy"), StoreThrottled),
    "500": (error("500 Internal Server Error", "InternalError"), StoreUnavailable),
    "502 of a proxy": (answer("502 Bad", {"Content-Length": "4"}, b"<htm"), StoreUnavailable),
    "400 timeout": (error("400 Bad Request", "RequestTimeout"), StoreTimeout),
    "other 400": (error("400 Bad Request", "InvalidRequest"), FusefsError),
    "not HTTP": (Answer(b"220 mail.example.com ESMTP\r\n", "close"), StoreUnavailable),
    "nothing": (Answer(b"", "close"), StoreUnavailable),
    "reset": (Answer(b"", "reset"), StoreUnavailable),
    "half a head": (
        Answer(b"HTTP/1.1 206 Partial Content\r\nETag: ", "close"),
        StoreUnavailable,
    ),
    "half an ETag": (
        Answer(good(b"").data.replace(b'ETag: "abc"\r\n', b"")[:-2] + b'ETag: "ab', "close"),
        StoreUnavailable,
    ),
    "silence": (Answer(b"", "stall"), StoreTimeout),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_a_byte_is_written(name: str, server: WireServer, store: S3Store) -> None:
    """A wrong answer has its class, one sentence without secrets, and leaves the buffer alone."""
    wrong, expected = REFUSED[name]
    server.answers += [wrong, good()]
    buffer = bytearray([BLANK]) * SIZE
    found, sentence = failure_of(store, buffer)
    assert found is expected
    assert buffer == bytearray([BLANK]) * SIZE
    assert "hunter2" not in sentence.lower()
    assert "\n" not in sentence
    # Whatever was left on that connection, it is not taken for the answer to the next request.
    assert read(store, buffer)[-1] == SIZE
    assert buffer == DATA


BROKEN: dict[str, tuple[Answer, type[FusefsError]]] = {
    "short": (good(body=DATA[: 2 * MIB + 7], ending="close"), StoreUnavailable),
    "no body": (good(body=b"", ending="close"), StoreUnavailable),
    "reset": (good(body=DATA[: MIB + 7], ending="reset"), StoreUnavailable),
    "stall": (good(body=DATA[: MIB + 7], ending="stall"), StoreTimeout),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_in_the_middle(name: str, server: WireServer, store: S3Store) -> None:
    """A body that ends early is an error worth a retry, and `landed` never named a missing byte."""
    wrong, expected = BROKEN[name]
    server.answers += [wrong, good()]
    buffer = bytearray(SIZE)
    reports: list[int] = []
    with pytest.raises(StoreUnavailable) as raised:
        store.read_into(ID, EXTENT, memoryview(buffer), reports.append)
    assert type(raised.value) is expected
    assert all(buffer[:count] == DATA[:count] for count in reports)
    assert max(reports, default=0) <= len(wrong.data)
    assert read(store, buffer)[-1] == SIZE
    assert buffer == DATA
    assert server.connections == 2


def test_a_body_that_goes_on_is_not_taken_for_the_next_answer(
    server: WireServer, store: S3Store
) -> None:
    """Bytes behind the promised length do not end up in another read."""
    server.answers += [good(body=DATA + b"HTTP/1.1 206 OK\r\n\r\nsmuggled"), good(), good()]
    buffer = bytearray(SIZE)
    for _ in range(2):
        read(store, buffer)
        assert buffer == DATA


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7.0), ("86400", 300.0), ("soon", None), ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0)],
)
def test_retry_after(
    header: str, expected: float | None, server: WireServer, store: S3Store
) -> None:
    """`retry_after_s` is what the store said, in seconds or as a date, up to five minutes."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    server.answers.append(error("503 Slow Down", "SlowDown", Retry_After=header, Date=date))
    with pytest.raises(StoreThrottled) as raised:
        read(store, bytearray(SIZE))
    assert raised.value.retry_after_s == expected


def test_the_region_is_named(server: WireServer, store: S3Store) -> None:
    """A bucket of another region is a ConfigError that names the region."""
    moved = error("301 Moved Permanently", "PermanentRedirect", x_amz_bucket_region="eu-west-3")
    server.answers += [moved, moved]
    with pytest.raises(ConfigError, match="eu-west-3"):
        store.check("")


LISTINGS: dict[str, tuple[bytes, type[FusefsError]]] = {
    "not XML": (b"<html>welcome to the hotel", StoreUnavailable),
    "no next page": (
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        CorruptData,
    ),
    "the same page": (
        b"<ListBucketResult><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>t</NextContinuationToken></ListBucketResult>",
        CorruptData,
    ),
    "size of no sense": (
        b"<ListBucketResult><Contents><Key>a</Key><Size>big</Size></Contents></ListBucketResult>",
        StoreUnavailable,
    ),
    "half an entry": (
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        StoreUnavailable,
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_bad_listings(name: str, server: WireServer, store: S3Store) -> None:
    """A listing that makes no sense is an error, not an empty directory and not an endless one."""
    body, expected = LISTINGS[name]
    server.answers.append(answer("200 OK", {"Content-Length": str(len(body))}, body))
    with pytest.raises(FusefsError) as raised:
        store.list_page("", "t")
    assert type(raised.value) is expected


def test_a_head_without_a_size_or_time(server: WireServer, store: S3Store) -> None:
    """A HEAD that does not say what it must is an error."""
    server.answers.append(answer("200 OK", {"ETag": '"abc"'}))
    with pytest.raises(StoreUnavailable):
        store.head("object")


def test_an_object_without_etag_is_not_read(server: WireServer, store: S3Store) -> None:
    """Without an ETag versions cannot be told apart, so nothing is asked for."""
    with pytest.raises(Unsupported):
        store.read_into(ObjectId("object", ""), Extent(0, 1), memoryview(bytearray(1)))
    assert server.requests == []


def test_nobody_listens(store: S3Store, server: WireServer) -> None:
    """A refused connection is StoreUnavailable and says so."""
    dead = S3Store("bucket", S3Config(endpoint_url="http://127.0.0.1:9"), 1)
    with pytest.raises(StoreUnavailable, match="Connection refused"):
        dead.check("")
    dead.close()


@pytest.mark.parametrize(
    ("have", "passes"), [(SIZE, True), (SIZE - 1, False), (0, False)], ids=["all", "short", "none"]
)
def test_the_copying_way(have: int, passes: bool) -> None:
    """A body whose insides are not those we know is read by its public `read`, just as strictly."""
    buffer, body = bytearray(SIZE), io.BytesIO(DATA[:have])
    if passes:
        receive(body, None, memoryview(buffer), None, "the object")
        assert buffer == DATA
    else:
        with pytest.raises(StoreUnavailable):
            receive(body, None, memoryview(buffer), None, "the object")


def test_a_missing_object(server: WireServer, store: S3Store) -> None:
    """A HEAD of status 404 is ObjectNotFound."""
    server.answers.append(answer("404 Not Found", {"Content-Length": "0"}))
    with pytest.raises(ObjectNotFound):
        store.head("object")


def test_threads_keep_their_connections(server: WireServer) -> None:
    """Many reads of several threads open at most one connection for each thread."""
    threads, reads = 4, 6
    server.answers += [good() for _ in range(threads * reads)]
    endpoint = f"http://127.0.0.1:{server.port}"
    store = S3Store("bucket", S3Config(endpoint_url=endpoint), connections=threads)
    together = threading.Barrier(threads)

    def run() -> None:
        for _ in range(reads):
            together.wait(20)
            assert read(store, bytearray(SIZE))[-1] == SIZE

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result()
    store.close()
    assert len(server.requests) == threads * reads
    assert 1 <= server.connections <= threads


def test_an_object_of_more_than_5_gib(server: WireServer, store: S3Store) -> None:
    """Its size is told in full, and its last bytes are asked for where they are."""
    size = 6 << 40
    head = {"ETag": '"abc"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
    server.answers.append(answer("200 OK", {"Content-Length": str(size), **head}))
    assert store.head("object").size == size
    extent = Extent(size - SIZE, size)
    said = f"bytes {extent.start}-{extent.stop - 1}/{size}"
    server.answers.append(good(Content_Range=said))
    buffer = bytearray(SIZE)
    assert read(store, buffer, extent)[-1] == SIZE
    assert buffer == DATA
    assert f"bytes={extent.start}-{extent.stop - 1}" in server.requests[-1]
