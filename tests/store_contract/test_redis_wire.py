"""What the Redis store makes of answers that no healthy server gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusefs.config import RedisConfig
from fusefs.errors import (
    AccessDenied,
    CorruptData,
    FusefsError,
    ObjectChanged,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
)
from fusefs.objects import Extent, ObjectId
from fusefs.store.redis import RedisStore
from fusefs.store.redis_layout import Recipe
from fusefs.store.redis_link import Address, Link
from tests.store_contract.redis_wire import Answer, RedisWire, bulk, open_redis_wire

MIB = 1 << 20
CHUNK = MIB
RECIPE = Recipe(2 * CHUNK, CHUNK, ("aa", "bb"))
ID = ObjectId("m/f", RECIPE.etag("stage"))
EXTENT = Extent(CHUNK - 100, CHUNK + 100)
DATA = bytes(range(200))
GOOD = (bulk(DATA[:100]), bulk(DATA[100:]))


@pytest.fixture
def wire() -> Iterator[RedisWire]:
    """A server that has handed out the recipe."""
    with open_redis_wire() as server:
        server.answers.append(Answer(bulk(RECIPE.encode().encode())))
        yield server


@pytest.fixture
def store(wire: RedisWire) -> Iterator[RedisStore]:
    """A store on it, with little patience."""
    address = Address("127.0.0.1", wire.port, 0, tls=False)
    opened = RedisStore(Link(address, RedisConfig(), 4, read_timeout_s=0.3), "m")
    yield opened
    opened.close()


def read(store: RedisStore) -> bytes:
    """Read the extent."""
    memory = bytearray(EXTENT.size)
    store.read_into(ID, EXTENT, memoryview(memory))
    return bytes(memory)


def test_a_good_answer(wire: RedisWire, store: RedisStore) -> None:
    """Both chunks are asked for by their content, in one go, and the recipe only once."""
    wire.answers += [Answer(GOOD[0]), Answer(GOOD[1])] * 2
    assert read(store) == DATA
    assert read(store) == DATA
    asked = [b" ".join(command) for command in wire.commands]
    chunks = [
        b"GETRANGE fusefs:chunk:stage:aa %d %d" % (CHUNK - 100, CHUNK - 1),
        b"GETRANGE fusefs:chunk:stage:bb 0 99",
    ]
    assert asked == [b"GET fusefs:recipe:" + ID.etag.encode(), *chunks, *chunks]


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (Answer(bulk(b"x" * 40)), CorruptData),
        (Answer(bulk(b"x" * 1000)), CorruptData),
        (Answer(bulk(DATA[100:] + b"xx", length=100)), CorruptData),
        (Answer(bulk(DATA[100:150], length=100), "close"), StoreUnavailable),
        (Answer(b"$100\r\nxxx", "reset"), StoreUnavailable),
        (Answer(b"$100\r\nxxx", "stall"), StoreTimeout),
        (Answer(b"", "stall"), StoreTimeout),
        (Answer(b"", "close"), StoreUnavailable),
        (Answer(b"$-1\r\n"), StoreUnavailable),
        (Answer(b":100\r\n"), StoreUnavailable),
        (Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), StoreUnavailable),
        (Answer(b"x" * 3000), StoreUnavailable),
        (Answer(b"-NOAUTH Authentication required hunter2.\r\n"), AccessDenied),
        (Answer(b"-WRONGPASS invalid username-password pair hunter2\r\n"), AccessDenied),
        (Answer(b"-NOPERM hunter2 has no permissions\r\n"), AccessDenied),
        (Answer(b"-LOADING Redis is loading the dataset in memory\r\n"), StoreUnavailable),
        (Answer(b"-MASTERDOWN Link with MASTER is down\r\n"), StoreUnavailable),
        (Answer(b"-CLUSTERDOWN Hash slot not served\r\n"), StoreUnavailable),
        (Answer(b"-TRYAGAIN Multiple keys request during rehashing\r\n"), StoreUnavailable),
        (Answer(b"-MOVED 3999 127.0.0.1:6381\r\n"), StoreUnavailable),
        (Answer(b"-ASK 3999 127.0.0.1:6381\r\n"), StoreUnavailable),
        (Answer(b"-BUSY Redis is busy running a script hunter2\r\n"), StoreThrottled),
        (Answer(b"-ERR max number of clients reached\r\n"), StoreThrottled),
        (Answer(b"-WRONGTYPE Operation against a key\r\n"), FusefsError),
        (Answer(b"-ERR hunter2 went wrong\r\n"), FusefsError),
    ],
)
def test_faults_of_a_chunk(
    wire: RedisWire, store: RedisStore, second: Answer, kind: type[FusefsError]
) -> None:
    """A fault has its class and a sentence without the server's words; the next read works."""
    wire.answers += [Answer(GOOD[0]), second]
    with pytest.raises(FusefsError) as raised:
        read(store)
    assert type(raised.value) is kind, raised.value
    assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)
    wire.answers.clear()
    wire.answers += [Answer(GOOD[0]), Answer(GOOD[1])]
    assert read(store) == DATA


@pytest.mark.parametrize(
    ("recipe_is_there", "kind"), [(b":0\r\n", ObjectChanged), (b":1\r\n", CorruptData)]
)
def test_a_chunk_that_is_gone(
    wire: RedisWire, store: RedisStore, recipe_is_there: bytes, kind: type[FusefsError]
) -> None:
    """Gone with its recipe it was replaced; gone alone, the server has evicted it."""
    wire.answers += [Answer(bulk(b"")), Answer(GOOD[1]), Answer(recipe_is_there)]
    with pytest.raises(kind):
        read(store)


@pytest.mark.parametrize(
    "recipe",
    [
        b"not JSON",
        b"[]",
        b"{}",
        b'{"size": 5, "chunk_bytes": 0, "chunks": []}',
        b'{"size": 5, "chunk_bytes": 4, "chunks": ["aa"]}',
        RECIPE.encode().replace("bb", "cc").encode(),
    ],
)
def test_a_damaged_recipe(wire: RedisWire, store: RedisStore, recipe: bytes) -> None:
    """A recipe that cannot be followed, or is another's, is CorruptData."""
    wire.answers.clear()
    wire.answers.append(Answer(bulk(recipe)))
    with pytest.raises(CorruptData):
        read(store)


@pytest.mark.parametrize("entry", [b"junk", b"[]", b'{"size": "5", "mtime_ns": 0, "etag": "x"}'])
def test_an_entry_that_is_not_ours(wire: RedisWire, store: RedisStore, entry: bytes) -> None:
    """Whatever else lies in our hash is CorruptData in a listing and a head."""
    wire.answers.clear()
    wire.answers += [Answer(b"*2\r\n" + bulk(b"f") + bulk(entry)), Answer(bulk(entry))]
    with pytest.raises(CorruptData):
        store.list_page("m/", None)
    with pytest.raises(CorruptData):
        store.head("m/f")


def test_nobody_there(store: RedisStore, wire: RedisWire) -> None:
    """A port on which nobody listens is StoreUnavailable, which may be tried again."""
    address = Address("127.0.0.1", 1, 0, tls=False)
    nobody = RedisStore(Link(address, RedisConfig(), 1), "m")
    with pytest.raises(StoreUnavailable, match="refused"):
        nobody.check("m/")
