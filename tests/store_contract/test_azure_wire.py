"""What the Azure store makes of a network and a server that misbehave, byte by byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

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
from fusefs.store.azure import AzureStore
from tests.harness.azurite import VARIABLES
from tests.store_contract.azure_wire import error, make_store
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
    good,
)

BLANK = 0xA5


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


def read(store: AzureStore, buffer: bytearray, extent: Extent = EXTENT) -> list[int]:
    """Read, and return what landed."""
    reports: list[int] = []
    store.read_into(ID, extent, memoryview(buffer), reports.append)
    return reports


def failure_of(store: AzureStore, buffer: bytearray) -> tuple[type[FusefsError], str]:
    """Class and sentence of a failed read. The error itself is gone then, as it is in a worker."""
    try:
        read(store, buffer)
    except FusefsError as error:
        return type(error), str(error)
    pytest.fail("the read succeeded")


def test_a_good_answer(server: WireServer, store: AzureStore) -> None:
    """A read asks for its range of its version, signed, and its connection is used again."""
    server.answers += [good(), good()]
    for _ in range(2):
        buffer = bytearray(SIZE)
        assert read(store, buffer) == [MIB, 2 * MIB, 3 * MIB, SIZE]
        assert buffer == DATA
    assert server.connections == 1
    head = server.requests[0].lower() + "\r\n"
    assert head.startswith("get /bucket/dir/model.safetensors http/1.1\r\n")
    assert f"x-ms-range: bytes={START}-{START + SIZE - 1}\r\n" in head
    assert 'if-match: "abc"\r\n' in head
    assert "authorization: sharedkey acct:" in head
    assert "accept-encoding: identity\r\n" in head
    assert "\r\nrange:" not in head


def test_what_is_stored_compressed_comes_as_it_is_stored(
    server: WireServer, store: AzureStore
) -> None:
    """A blob with a Content-Encoding is delivered byte for byte, never unpacked."""
    server.answers += [good(Content_Encoding="gzip"), good()]
    for _ in range(2):
        buffer = bytearray(SIZE)
        assert read(store, buffer)[-1] == SIZE
        assert buffer == DATA
    assert server.connections == 1


def test_a_whole_object_may_come_as_200(server: WireServer, store: AzureStore) -> None:
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
    "no Content-Range": (good(Content_Range=None), StoreUnavailable),
    "range elsewhere": (good(Content_Range=f"bytes 0-{SIZE - 1}/99000000"), CorruptData),
    "range of no sense": (good(Content_Range="bytes everything"), CorruptData),
    "204": (good(status="204 No Content", body=b"", Content_Length=None), StoreUnavailable),
    "redirect": (
        answer("307 Temporary", {"Location": "http://127.0.0.1:9/", "Content-Length": "0"}),
        FusefsError,
    ),
    "412": (error("412 Precondition Failed", "ConditionNotMet"), ObjectChanged),
    "404": (error("404 Not Found", "BlobNotFound"), ObjectChanged),
    "no container": (error("404 Not Found", "ContainerNotFound"), ObjectChanged),
    "416": (error("416 Range Not Satisfiable", "InvalidRange"), ObjectChanged),
    "failed": (error("403 Forbidden", "AuthenticationFailed"), AccessDenied),
    "firewall": (error("403 Forbidden", "AuthorizationFailure"), AccessDenied),
    "no role": (error("403 Forbidden", "AuthorizationPermissionMismatch"), AccessDenied),
    "no keys": (error("403 Forbidden", "KeyBasedAuthenticationNotPermitted"), AccessDenied),
    "not public": (error("409 Conflict", "PublicAccessNotPermitted"), AccessDenied),
    "401": (error("401 Unauthorized", "NoAuthenticationInformation"), AccessDenied),
    "403 of a proxy": (answer("403 No", {"Content-Length": "2"}, b"no"), AccessDenied),
    "https only": (error("400 Bad Request", "AccountRequiresHttps"), ConfigError),
    "archived": (error("409 Conflict", "BlobArchived"), Unsupported),
    "on its way back": (error("409 Conflict", "BlobBeingRehydrated"), Unsupported),
    "being deleted": (error("409 Conflict", "ContainerBeingDeleted"), StoreUnavailable),
    "429": (error("429 Too Many Requests", "TooManyRequests"), StoreThrottled),
    "503": (error("503 Busy", "ServerBusy"), StoreThrottled),
    "503 of a proxy": (answer("503 Busy", {"Content-Length": "4"}, b"busy"), StoreThrottled),
    "500": (error("500 Internal Server Error", "InternalError"), StoreUnavailable),
    "500 too slow": (error("500 Operation timed out", "OperationTimedOut"), StoreUnavailable),
    "502 of a proxy": (answer("502 Bad", {"Content-Length": "4"}, b"<htm"), StoreUnavailable),
    "a large error": (
        answer("502 Bad", {"Content-Length": str(MIB)}, bytes(MIB)),
        StoreUnavailable,
    ),
    "408": (answer("408 Request Timeout", {"Content-Length": "0"}), StoreTimeout),
    "other 400": (error("400 Bad Request", "InvalidInput"), FusefsError),
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
def test_refused_before_a_byte_is_written(name: str, server: WireServer, store: AzureStore) -> None:
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
    "short and compressed": (
        good(body=DATA[: 2 * MIB + 7], ending="close", Content_Encoding="gzip"),
        StoreUnavailable,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_in_the_middle(name: str, server: WireServer, store: AzureStore) -> None:
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


def test_a_failure_lets_go_of_the_buffer(server: WireServer, store: AzureStore) -> None:
    """Once a failure is handled nothing refers to the buffer: no garbage collection is needed."""
    server.answers += [Answer(b"", "close"), error("503 Busy", "ServerBusy")]
    buffer = bytearray(SIZE)
    for expected in (StoreUnavailable, StoreThrottled):
        assert failure_of(store, buffer)[0] is expected
        buffer.append(0)  # refused by bytearray while a memoryview of it lives
        del buffer[-1]
    assert len(buffer) == SIZE


def test_a_body_that_goes_on_is_not_taken_for_the_next_answer(
    server: WireServer, store: AzureStore
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
    header: str, expected: float | None, server: WireServer, store: AzureStore
) -> None:
    """`retry_after_s` is what the store said, in seconds or as a date, up to five minutes."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    server.answers.append(error("503 Busy", "ServerBusy", Retry_After=header, Date=date))
    with pytest.raises(StoreThrottled) as raised:
        read(store, bytearray(SIZE))
    assert raised.value.retry_after_s == expected


def test_a_wrong_clock_is_told(server: WireServer, store: AzureStore) -> None:
    """A signature that fails because of this machine's clock is told from a wrong key."""
    now = formatdate(usegmt=True)
    for date, said in (("Wed, 21 Oct 2020 07:28:00 GMT", "the clock"), (now, "check key")):
        server.answers.append(error("403 Forbidden", "AuthenticationFailed", Date=date))
        with pytest.raises(AccessDenied, match=said):
            store.check("")


SAS = "sv=2021-12-02&sp=rl&sr=c&se=2026-01-02T03:04:05Z&sig=aHVudGVyMg%3D%3D"


def test_a_sas_that_has_expired_is_told(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SAS goes with each request and into no message; that it is over is said with its date."""
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{SAS}")
    store = make_store(f"http://127.0.0.1:{server.port}")
    server.answers += [
        error("403 Forbidden", "AuthenticationFailed", Date=formatdate(usegmt=True)),
        good(),
    ]
    with pytest.raises(AccessDenied) as raised:
        store.check("")
    assert "2026-01-02 03:04" in str(raised.value)
    assert "sig" not in str(raised.value)
    assert read(store, bytearray(SIZE))[-1] == SIZE
    store.close()
    assert f"maxresults=1&{SAS} HTTP" in server.requests[0]
    assert f"/bucket/dir/model.safetensors?{SAS} HTTP" in server.requests[1]
    assert "authorization" not in server.requests[1].lower()


def test_nobody_is_asked_with_credentials_if_anonymous(server: WireServer) -> None:
    """With azure.anonymous nothing of the environment is sent; what is private looks missing."""
    store = make_store(f"http://127.0.0.1:{server.port}", anonymous=True)
    server.answers.append(error("404 Not Found", "ResourceNotFound"))
    with pytest.raises(ObjectNotFound, match="not public"):
        store.check("")
    store.close()
    assert "authorization" not in server.requests[0].lower()


def test_names_that_no_url_can_hold(server: WireServer, store: AzureStore) -> None:
    """HTTP clients resolve '.' and '..', which would be another blob: such names are not asked."""
    for key in ("a/../b", "..", "./a"):
        with pytest.raises(ObjectNotFound):
            store.head(key)
        with pytest.raises(ObjectChanged):
            store.read_into(ObjectId(key, "abc"), EXTENT, memoryview(bytearray(SIZE)))
    assert server.requests == []


def test_an_object_without_etag_is_not_read(server: WireServer, store: AzureStore) -> None:
    """Without an ETag versions cannot be told apart, so nothing is asked for."""
    with pytest.raises(Unsupported):
        store.read_into(ObjectId("object", ""), Extent(0, 1), memoryview(bytearray(1)))
    assert server.requests == []


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-account.invalid", "does not resolve"),
    ],
)
def test_nobody_there(endpoint: str, says: str) -> None:
    """A refused connection or a host without address is StoreUnavailable and says so."""
    dead = make_store(endpoint)
    with pytest.raises(StoreUnavailable, match=says):
        dead.check("")
    dead.close()


def test_threads_keep_their_connections(server: WireServer) -> None:
    """Many reads of several threads open at most one connection for each thread."""
    threads, reads = 4, 6
    server.answers += [good() for _ in range(threads * reads)]
    store = make_store(f"http://127.0.0.1:{server.port}", connections=threads)
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


def test_an_object_of_more_than_5_gib(server: WireServer, store: AzureStore) -> None:
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
