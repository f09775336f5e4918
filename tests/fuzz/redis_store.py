"""Answers of a Redis that nobody would believe: on the wire, and as values in its keys.

Nothing goes over a network. `wire` hands the link a connection whose server says the input; in
`model` the server holds what the input says, a key and a value on each line, whatever is asked.
"""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

import redis

from fusefs.config import RedisConfig
from fusefs.engine import jobs
from fusefs.errors import CorruptData, FusefsError
from fusefs.objects import Extent
from fusefs.store.redis import RedisStore
from fusefs.store.redis_layout import Entry, ModelKeys, Recipe, chunk_key, recipe_key
from fusefs.store.redis_link import Address, Link, Piece, ValueMissing

_ADDRESS = Address("127.0.0.1", 9, 0, False)
_BUFFER_BYTES = 12
_MODEL = ModelKeys("m")


class _Connection(redis.Connection):
    """A connection that was made: what is sent goes nowhere."""

    def send_packed_command(self, command: object, check_health: bool = True) -> None:
        """See redis-py."""

    def disconnect(self, *args: object, **kwargs: object) -> None:
        """See redis-py; the socket is the target's to close."""


class _Client:
    """What the link needs of a client: a pool of one connection."""

    def __init__(self, wire: socket.socket) -> None:
        self.connection_pool = self
        connection = _Connection()  # type: ignore[no-untyped-call]
        connection._sock = wire  # type: ignore[assignment] # None to its types, until it connects
        self._connection = connection

    def get_connection(self) -> Any:
        """See redis-py."""
        return self._connection

    def release(self, connection: object) -> None:
        """See redis-py."""


def wire(data: bytes) -> None:
    """Replies to GETRANGE: exactly the bytes that were asked for, or an error."""
    link = Link(_ADDRESS, RedisConfig(), 1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        link._client = _Client(ours)
        buffer, told = bytearray(_BUFFER_BYTES), list[int]()
        pieces = [Piece("a", 0, 4), Piece("b", 10, 18)]
        try:
            link.read_into(pieces, memoryview(buffer), told.append, "it")
        except (FusefsError, ValueMissing):
            return
        assert data.startswith(b"$4\r\n%s\r\n$8\r\n%s\r\n" % (buffer[:4], buffer[4:]))
        assert told[-1] == _BUFFER_BYTES


def wire_seeds() -> Iterable[bytes]:
    """Good replies, and some of a server's other words."""
    yield b"$4\r\nabcd\r\n$8\r\n12345678\r\n"
    yield b"$0\r\n\r\n"
    yield b"-MOVED 5 127.0.0.1:7\r\n"
    yield b"-LOADING it is\r\n$4\r\n"
    yield b"$-1\r\n$3\r\nabc\r\n"


class _Held:
    """A server's keys as the input has them; every command of redis-py that stores use."""

    def __init__(self, data: bytes) -> None:
        rows = [row.partition(b"\t") for row in data.split(b"\n")]
        self._values = {key: value for key, tab, value in rows if tab}

    def smembers(self, key: str) -> set[bytes]:
        return set(self._values)

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        prefix = key.encode(errors="surrogateescape") + b"/"
        return {k[len(prefix) :]: v for k, v in self._values.items() if k.startswith(prefix)}

    def hget(self, key: str, field: str) -> bytes | None:
        return self.hgetall(key).get(field.encode(errors="surrogateescape"))

    def get(self, key: str) -> bytes | None:
        return self._values.get(key.encode(errors="surrogateescape"))

    def exists(self, key: str) -> int:
        return int(key.encode(errors="surrogateescape") in self._values)

    def scan_iter(self, match: str, count: int) -> Iterator[bytes]:
        pattern = match.encode(errors="surrogateescape")
        return (key for key in self._values if fnmatch.fnmatchcase(key, pattern))

    def pipeline(self, transaction: bool) -> _Held:
        self._asked: list[object] = []
        return self

    def strlen(self, key: bytes) -> None:
        self._asked.append(len(self._values.get(key, b"")))

    def getrange(self, key: bytes, start: int, end: int) -> None:
        self._asked.append(self._values.get(key, b"")[start : end + 1])

    def execute(self) -> list[object]:
        return self._asked


class _HeldLink:
    """A link to it."""

    address = _ADDRESS

    def __init__(self, held: _Held) -> None:
        self._held = held

    def run(self, what: str, action: Callable[[Any], Any]) -> Any:
        """See `Link`."""
        return action(self._held)

    def read_into(
        self,
        pieces: list[Piece],
        buffer: memoryview,
        landed: Callable[[int], None] | None,
        what: str,
    ) -> None:
        """See `Link`."""
        at = 0
        for piece in pieces:
            assert 0 <= piece.start < piece.stop, piece
            value = self._held.get(piece.key) or b""
            part = value[piece.start : piece.stop]
            if not part:
                raise ValueMissing(piece.key)
            if len(part) != piece.stop - piece.start:
                raise CorruptData("cut")
            buffer[at : at + len(part)] = part
            at += len(part)
        assert at == len(buffer), "other bytes than were asked for"


def model(data: bytes) -> None:
    """A model as its keys and values have it: names, sizes and bytes that fit, or an error."""
    for name in ("m", ""):
        store = RedisStore(cast(Link, _HeldLink(_Held(data))), name)
        with suppress(FusefsError):
            page = store.list_page("m/" if name else "", None)
            with suppress(CorruptData):
                jobs.page_to_parts(page)
            for meta in page.objects[:4]:
                with suppress(FusefsError):
                    assert store.head(meta.id.key).size >= 0
                    extent = Extent(0, min(meta.size, 64))
                    if extent.size:
                        store.read_into(meta.id, extent, memoryview(bytearray(extent.size)))


def model_seeds() -> Iterable[bytes]:
    """A model of ours with a file of two chunks, and one of SGLang's."""
    recipe = Recipe(6, 4, ("a" * 64, "b" * 64))
    etag = recipe.etag("stage")
    files = _MODEL.files.encode()
    rows = {
        files + b"/dir/file": Entry(6, 10**18, etag).encode().encode(),
        _MODEL.manifest.encode(): b"x",
        recipe_key(etag).encode(): recipe.encode().encode(),
        chunk_key("stage", "a" * 64).encode(): b"abcd",
        chunk_key("stage", "b" * 64).encode(): b"ef",
    }
    yield b"\n".join(b"%s\t%s" % row for row in rows.items())
    head = b'{"tensor_bytes":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    blob = len(head).to_bytes(8, "little") + head + b"12345678"
    yield b"m/keys/rank_0/w\t" + blob.replace(b"\n", b" ") + b"\nm/files/config.json\t{}"
