"""Bytes of a peer, into the real thing: its connection, its plans, the engine behind them.

Whatever comes, the peer's own connection may end and nothing else: no unforeseen exception, and
nothing held once it has gone. Each input has a world of its own, on a virtual clock.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio
import trio.testing

from fusefs.errors import FusefsError
from fusefs.hints.peer import Credentials, Desk, Peer
from fusefs.hints.verbs import Verbs
from fusefs.tree.inodes import ROOT_INODE
from loaderhint import protocol
from tests.engine.simulated import BLOCK
from tests.reference.model import World, open_file, open_world

FILES = {"a.bin": 5 * BLOCK + 17, "b.safetensors": 12 * BLOCK}
_PIECE_BYTES = 4096
ANSWER_BYTES_MAX = 64 << 10
"""What the kernel takes as the value of an attribute."""


class Unforeseen(Exception):
    """The daemon's side met an exception that nobody had thought of."""


class _Listening(logging.Handler):
    """Fails on what is logged of unforeseen exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


def _in_a_world(body: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_world(slots=16, capacity=4) as world:
            for key, size in FILES.items():
                world.put(key, size)
            for key in FILES:
                assert await open_file(world, key) is not None
            await body(world)
            assert world.hints is not None
            assert len(world.hints.pins) == len(world.hints.hinted) == 0
            assert not world.hints.groups._groups

    listening, log = _Listening(), logging.getLogger("fusefs")
    log.addHandler(listening)
    try:
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        log.removeHandler(listening)
    for record in listening.found:
        error = record.exc_info[1] if record.exc_info else None
        raise Unforeseen(record.getMessage()) from error


def hints(data: bytes) -> None:
    """A connection to the socket that says `data`, and then hangs up."""

    async def body(world: World) -> None:
        assert world.hints is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        desk = Desk(world.hints, BLOCK, lambda: b'{"v": 1}')
        peer = Peer(
            trio.socket.from_stdlib_socket(theirs), Credentials(1, 0, 0), desk, lambda: ["/"]
        )
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            nursery.start_soon(_hear, stream)
            await _say(stream, data)

    _in_a_world(body)


async def _say(stream: trio.SocketStream, data: bytes) -> None:
    hello = protocol.encode({"id": 0, "op": "hello", "protocol": [1]})
    whole = data[1:] if data[:1] == b"\0" else hello + data
    try:
        for at in range(0, len(whole), _PIECE_BYTES):
            await stream.send_all(whole[at : at + _PIECE_BYTES])
        await trio.sleep(0.2)  # for what was asked for
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # it hung up on us


async def _hear(stream: trio.SocketStream) -> None:
    """Everything that is said must be of the protocol."""
    frames, fds = protocol.Frames(), []
    async with stream:
        try:
            while True:
                data, rights, _, _ = await stream.socket.recvmsg(1 << 16, socket.CMSG_SPACE(16))
                for _, _, payload in rights:
                    fds += [payload[at : at + 4] for at in range(0, len(payload), 4)]
                if not data:
                    break
                for message in frames.feed(data):
                    assert "id" in message or "ev" in message, message
        except (ConnectionResetError, trio.ClosedResourceError):
            pass
        finally:
            for fd in fds:
                socket.close(int.from_bytes(fd, "little"))


def verbs(data: bytes) -> None:
    """Names of attributes, one a line, asked of the root and of files by turns."""

    async def body(world: World) -> None:
        asked = Verbs(world.tree, world.engine.files, world.engine.hinted)
        inodes = [ROOT_INODE, *(handle.inode for handle in world.handles)]
        names = data.split(b"\n")[:40]
        for number, name in enumerate(names):
            try:
                answer = await asked.answer(inodes[number % len(inodes)], name)
            except FusefsError:
                continue
            assert answer is None or len(answer) <= ANSWER_BYTES_MAX
            assert answer is None or json.loads(answer)["v"] == 1
        for inode in inodes:
            await asked.answer(inode, b"user.fusefs.cancel")

    _in_a_world(body)


def seeds() -> Iterable[bytes]:
    """Conversations as clients have them; the files' inodes are the same in every world."""
    inodes = _inodes()
    for inode in inodes:
        file = {"inode": inode, "extents": [[0, 4096], [8192, 20000]]}
        for mode in ("warm", "slots"):
            yield _frames(
                {"id": 1, "op": "plan", "plan": "p", "mode": mode, "files": [file]},
                {"id": 2, "op": "subscribe", "plan": "p", "every_bytes": 1},
                {"id": 3, "op": "map", "plan": "p"},
                {"id": 4, "op": "wait", "plan": "p", "inode": inode, "start": 0, "stop": 1,
                 "timeout_ms": 9},
                {"id": 5, "op": "release", "plan": "p", "slots": [0]},
                {"id": 6, "op": "progress", "plan": "p"},
                {"id": 7, "op": "cancel", "plan": "p"},
            )  # fmt: skip
    group = {"id": "g", "rank": 0, "size": 2}
    both = [{"inode": inode} for inode in inodes]
    yield _frames(
        {"id": 1, "op": "plan", "plan": "g", "mode": "slots", "files": both, "group": group,
         "window_bytes": 8192},
        {"id": 2, "op": "map", "plan": "g"}, {"id": 3, "op": "stats"},
    )  # fmt: skip
    yield b"\0" + _frames({"id": 1, "op": "plan"}, {"id": 1, "op": "hello", "protocol": [1]})


def verb_seeds() -> Iterable[bytes]:
    """Every verb there is."""
    yield b"\n".join(
        b"user.fusefs." + name
        for name in (b"prefetch", b"progress", b"prefetch", b"prefetch:0-100", b"cancel", b"stats")
    )
    yield b"user.fusefs.prefetch:99999999999999999999-1\nuser.fusefs.prefetch:5-1\nuser.x"


def _inodes() -> list[int]:
    found: list[int] = []

    async def body(world: World) -> None:
        found.extend(handle.inode for handle in world.handles)

    _in_a_world(body)
    return found


def _frames(*messages: dict[str, Any]) -> bytes:
    return b"".join(protocol.encode(message) for message in messages)
