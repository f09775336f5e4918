"""The way to a Redis or Valkey server or cluster: redis-py's connections, a short cut for bytes.

Knows no layout. redis-py connects, authenticates, finds a cluster's nodes and keeps connections; it
is told not to retry, since the fetcher does. The one idea: pieces of values are asked for in one
go and received from the socket straight into the buffer. redis-py's own reader makes copies of
each: 2.0-2.5 s of CPU per GB, 0.6 with hiredis, against 0.3 here (docs/stores/redis.md).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import AskError, InvalidResponse, RedisError
from redis.retry import Retry

from fusefs.config import Config, RedisConfig
from fusefs.errors import CorruptData, StoreTimeout
from fusefs.policy.budget import CONNECTIONS_MAX
from fusefs.store.base import Source, silence_s
from fusefs.store.crawl import Crawl
from fusefs.store.redis_errors import SDK_ERRORS, translate

CONNECT_TIMEOUT_S = 5.0
"""Linux repeats a lost SYN after 1 s and 3 s: two may be lost, and a dead address costs no more."""

READ_TIMEOUT_S = 20.0
"""Silence, not duration, as for S3: a server that saves or runs a script is silent for seconds."""

_PIECE_BYTES = 1 << 20
"""One `landed` for each, the arena's block, and one request: a server with many readers takes
0.4 s of CPU per GB for answers of 1 MiB, 0.75 for those of 4, whose memory it gets afresh."""

_LINE_BYTES_MAX = 1024
"""No error of Redis is longer; a longer line comes from something else."""

_DRAIN_COMMANDS = 256
"""Requests that wait for answers on one connection: what keeps a server busy, and bounds what it
has to buffer for us."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """One server, or any node of a cluster. `db` is 0 in a cluster."""

    host: str
    port: int
    db: int
    tls: bool

    @classmethod
    def of(cls, source: Source) -> Address:
        """The address in a parsed SOURCE, whose `server` is `host:port/db`."""
        place, _, db = source.server.rpartition("/")
        host, _, port = place.rpartition(":")
        return cls(host.strip("[]"), int(port), int(db), source.scheme == "rediss")

    def __str__(self) -> str:
        """As messages name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.db}"


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes `[start, stop)` of the value of `key`."""

    key: str
    start: int
    stop: int


def _split(piece: Piece) -> Iterator[Piece]:
    for start in range(piece.start, piece.stop, _PIECE_BYTES):
        yield Piece(piece.key, start, min(piece.stop, start + _PIECE_BYTES))


class ValueMissing(Exception):
    """A key that should hold bytes is not there. The caller knows what that means."""


class Link:
    """Blocking and thread-safe. Raises `FusefsError`, and `ValueMissing` from `read_into`."""

    def __init__(
        self,
        address: Address,
        config: RedisConfig,
        connections: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.address = address
        self._config = config
        self._connections = connections
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._lock = threading.Lock()
        # The mutable state of Link is its client, made by the first request, and whether what it
        # knows of a cluster's nodes is in doubt.
        self._client: Any = None
        self._doubt = False

    def run(self, what: str, action: Callable[[Any], T]) -> T:
        """Return `action(client)`; `what` is the subject of the sentence if that fails."""
        try:
            return action(self._connected())
        except SDK_ERRORS as error:
            translated = translate(error, what)
            if self.address.tls and self._client is None and isinstance(translated, StoreTimeout):
                # Redis takes the greeting of TLS for the beginning of a command, and waits.
                raise StoreTimeout(f"{translated}; if it has no TLS, type redis://") from error
            raise translated from error

    def read_into(
        self,
        pieces: Sequence[Piece],
        buffer: memoryview,
        landed: Callable[[int], None] | None,
        what: str,
    ) -> None:
        """Fill `buffer` with the pieces, one after the other; together they are its size.

        Raises `ValueMissing` if a key is not there, `CorruptData` if a value is too short.
        """
        landing = _Landing(buffer, landed, what)
        try:
            client = self._connected()
            if isinstance(client, RedisCluster) and self._doubt:
                client.nodes_manager.initialize()
                self._doubt = False
            asked = [part for piece in pieces for part in _split(piece)]
            for first in range(0, len(asked), _DRAIN_COMMANDS):
                batch = asked[first : first + _DRAIN_COMMANDS]
                done = self._read_batch(client, batch, landing, what)
                # The rest has moved to other nodes: redis-py finds it, with a copy more.
                for piece in batch[done:]:
                    data = client.getrange(piece.key, piece.start, piece.stop - 1)
                    _check_length(len(data), piece, what)
                    landing.copy(data)
        except SDK_ERRORS as error:
            self._doubt = True
            raise translate(error, what) from error

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _read_batch(self, client: Any, batch: Sequence[Piece], landing: _Landing, what: str) -> int:
        """Ask for all pieces, then receive them; returns how many came before one had moved."""
        with _open_connections(client) as connection_for:
            asked = [connection_for(piece.key) for piece in batch]
            requests: dict[Any, list[tuple[str, str, int, int]]] = {}
            for connection, piece in zip(asked, batch, strict=True):
                command = ("GETRANGE", piece.key, piece.start, piece.stop - 1)
                requests.setdefault(connection, []).append(command)
            for connection, commands in requests.items():
                connection.send_packed_command(connection.pack_commands(commands))
            for index, (connection, piece) in enumerate(zip(asked, batch, strict=True)):
                try:
                    _receive(connection, piece, landing, what)
                except AskError:  # and MovedError, which is one
                    if not isinstance(client, RedisCluster):
                        raise
                    for other in requests:
                        other.disconnect()
                    client.nodes_manager.initialize()
                    return index
        return len(batch)

    def _connected(self) -> Any:
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        connect_timeout_s, read_timeout_s = self._timeouts_s
        options: dict[str, Any] = {
            "host": self.address.host,
            "port": self.address.port,
            "username": self._config.username,
            # redis-cli's own variable: never in argv or a file of ours.
            "password": os.environ.get("REDISCLI_AUTH"),
            # Without pushes from the server, which would stand between our answers.
            "protocol": 2,
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": read_timeout_s,
            "socket_keepalive": True,
            "max_connections": self._connections,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.address.tls:
            options |= {"ssl": True, "ssl_ca_certs": self._config.ca_file}
        client = redis.Redis(db=self.address.db, **options)
        try:
            if _mode(client) != "cluster":
                return client
        except BaseException:
            client.close()
            raise
        client.close()
        return RedisCluster(**options)


class _Landing:
    """A buffer that fills from the front, and who wants to know how far it is."""

    def __init__(self, buffer: memoryview, landed: Callable[[int], None] | None, what: str) -> None:
        self._buffer = buffer
        self._landed = landed
        self._what = what
        self._crawl = Crawl()
        # The mutable state of _Landing is how many bytes are there, and how many were reported.
        self._filled = 0
        self._reported = 0

    def receive(self, connection: socket.socket, size: int) -> None:
        """Take `size` bytes from a socket."""
        stop = self._filled + size
        while self._filled < stop:
            until = min(stop, self._reported + _PIECE_BYTES)
            count = connection.recv_into(self._buffer[self._filled : until])
            if count == 0:
                raise ConnectionResetError("the server hung up")
            self._crawl.received(count, self._what)
            self._advance(count)

    def copy(self, data: bytes) -> None:
        """Take bytes that are already here."""
        self._buffer[self._filled : self._filled + len(data)] = data
        self._advance(len(data))

    def _advance(self, count: int) -> None:
        self._filled += count
        due = self._filled - self._reported >= _PIECE_BYTES or self._filled == len(self._buffer)
        if due:
            self._reported = self._filled
            if self._landed is not None:
                self._landed(self._filled)


@contextmanager
def _open_connections(client: Any) -> Iterator[Callable[[str], Any]]:
    """Yield a function key -> connection to the node that holds it, one connection per node.

    Whatever stops the body, a connection with unread answers must not go back to its pool as it is.
    """
    taken: dict[Any, Any] = {}

    def connection_for(key: str) -> Any:
        node = client
        if isinstance(client, RedisCluster):
            found: Any = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
            node = client.get_redis_connection(found)
        pool = node.connection_pool
        if pool not in taken:
            taken[pool] = pool.get_connection()
        return taken[pool]

    try:
        yield connection_for
    except BaseException:
        for connection in taken.values():
            connection.disconnect()
        raise
    finally:
        for pool, connection in taken.items():
            pool.release(connection)


def _receive(connection: Any, piece: Piece, landing: _Landing, what: str) -> None:
    """Receive one bulk string: `$LENGTH`, the bytes, an end of line. Nothing is read beyond it."""
    wire = connection._sock  # noqa: SLF001 - between two commands redis-py has read nothing ahead
    line = _read_line(wire, b"$%d\r\n" % (piece.stop - piece.start))
    if line[:1] == b"-":
        raise connection._parser.parse_error(line[1:].decode(errors="replace"))  # noqa: SLF001
    if line[:1] != b"$" or not line[1:].isdigit():
        raise InvalidResponse("not a bulk string")
    _check_length(int(line[1:]), piece, what)
    landing.receive(wire, piece.stop - piece.start)
    if _read_exactly(wire, 2) != b"\r\n":
        raise CorruptData(f"{what} came with a wrong length")


def _check_length(length: int, piece: Piece, what: str) -> None:
    if length == 0:  # GETRANGE of a key that is not there, or of nothing that is in the value
        raise ValueMissing(piece.key)
    if length != piece.stop - piece.start:
        raise CorruptData(f"{what} came with a wrong length: a value in the server was cut")


def _read_line(wire: socket.socket, expected: bytes) -> bytes:
    """One line without its end; if it is the expected one, in two system calls.

    A line that is not may be followed by more than was read: whoever gets it hangs up.
    """
    line = _read_exactly(wire, 4)  # the shortest there is: a sign, a digit, an end of line
    if expected.startswith(line):
        # No wait for what does not come: a number of three digits has as many bytes behind it.
        line += _read_exactly(wire, len(expected) - len(line))
    while b"\r\n" not in line:
        if len(line) > _LINE_BYTES_MAX:
            raise InvalidResponse("a line without an end")
        line += _read_exactly(wire, 1)
    return line.partition(b"\r\n")[0]


def _read_exactly(wire: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = wire.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the server hung up")
        data += more
    return data


def _mode(client: Any) -> str:
    """`standalone`, `sentinel` or `cluster`. HELLO tells, and no access list can forbid it."""
    answer = client.execute_command("HELLO")
    if isinstance(answer, dict):
        answer = [part for item in answer.items() for part in item]
    for name, value in zip(answer[::2], answer[1::2], strict=False):
        if name in (b"mode", "mode"):
            return value.decode() if isinstance(value, bytes) else str(value)
    raise RedisError("HELLO names no mode")


def open_link(source: Source, config: Config) -> Link:
    """Make the link that `source` names; no connection is opened yet."""
    connections = config.engine.connections or CONNECTIONS_MAX
    timeout_s = silence_s(READ_TIMEOUT_S, config.engine.read_deadline_s)
    return Link(Address.of(source), config.redis, connections, read_timeout_s=timeout_s)
