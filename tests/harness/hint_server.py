"""A daemon of the hint protocol without a mount: files of a plain folder, over a real socket.

For what a client must stand: it keeps to the protocol unless told to misbehave. A slot that was
released is overwritten at once, so whoever reads one too late reads noise.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loaderhint import channel, protocol

NOISE = b"\xee"
LIMITS = {"frame_bytes": protocol.FRAME_BYTES_MAX, "extents": 100_000, "files": 10_000, "plans": 64}


@dataclass(slots=True)
class Behaviour:
    """What the server does otherwise than it should; all of it may change while it runs."""

    features: list[str] = field(default_factory=lambda: ["warm", "slots"])
    slot_bytes: int = 4096
    slots: int = 4
    hello: dict[str, Any] | None = None
    """Said instead of the greeting."""
    instead: dict[str, bytes] = field(default_factory=dict)
    """Raw bytes sent instead of the reply to an operation."""
    silent: set[str] = field(default_factory=set)
    """Operations that get no reply."""
    descriptors_for: set[str] = field(default_factory=lambda: {protocol.MAP})
    """Operations whose reply brings the arena's descriptor."""
    hang_up_after_slots: int | None = None
    fail_after_slots: int | None = None
    """Say that a file failed."""
    shuffle: random.Random | None = None
    """Slots in any order, some of them twice, cut where it pleases."""
    lie: dict[str, Any] = field(default_factory=dict)
    """Fields of every slot event that are wrong."""
    ready_share: float = 0.5
    """Of what was asked for, by its own account."""
    announce_failure: str | None = None
    """What a subscriber hears of every file."""
    stall: threading.Event = field(default_factory=threading.Event)
    """While set, a connection's slots wait."""


class HintServer:
    """Listens at `folder`/.fusefs/socket; a thread for each connection.

    The mutable state is what came: `plans` as merged, `requests` as sent; and the connections.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behaviour = Behaviour()
        self.plans: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.slots_sent = 0
        self.came = threading.Condition()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Listen, again if it listened before."""
        path = self.folder / protocol.SOCKET_FOLDER / protocol.SOCKET_NAME
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        at = os.open(path.parent, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{at}/{path.name}")
        os.close(at)
        self._listener.listen()
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Hang up on everybody, and be gone."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._threads.clear()

    def hang_up(self) -> None:
        """End every connection that there is."""
        connections, self._connections = self._connections, []
        for connection in connections:
            with _quiet():
                connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, op: str, count: int = 1) -> list[dict[str, Any]]:
        """The requests of this operation, once `count` have come."""
        with self.came:
            found = self.came.wait_for(lambda: len(self.of(op)) >= count, timeout=10)
            assert found, f"{op} came {len(self.of(op))} times, not {count}"
            return self.of(op)

    def of(self, op: str) -> list[dict[str, Any]]:
        """The requests of this operation so far."""
        return [request for request in self.requests if request["op"] == op]

    @property
    def connected(self) -> int:
        """How many threads serve a connection."""
        return sum(thread.is_alive() for thread in self._threads) - 1

    def _spawn(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="hint-server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with _quiet():
            while True:
                connection, _ = listener.accept()
                self._connections.append(connection)
                self._spawn(_Peer(self, connection).serve)


class _Peer:
    """One connection."""

    def __init__(self, server: HintServer, connection: socket.socket) -> None:
        self._server = server
        self._behaviour = server.behaviour
        self._connection = connection
        self._arena = os.memfd_create("arena")
        self._free: list[int] = []
        self._pinned: set[int] = set()
        self._queue: list[tuple[str, int, int, int]] = []
        os.ftruncate(self._arena, self._behaviour.slot_bytes * self._behaviour.slots)

    def serve(self) -> None:
        """Answer until the peer is gone."""
        behaviour = self._behaviour
        self._free = [n * behaviour.slot_bytes for n in range(behaviour.slots)]
        frames = protocol.Frames()
        try:
            with _quiet(), self._connection:
                while data := self._connection.recv(65536):
                    for request in frames.feed(data):
                        self._answer(request)
                        self._fill()
        finally:
            os.close(self._arena)

    def _answer(self, request: dict[str, Any]) -> None:
        op = request["op"]
        with self._server.came:
            self._server.requests.append(request)
            self._server.came.notify_all()
        if op in self._behaviour.instead:
            self._connection.sendall(self._behaviour.instead[op])
            return
        if op in self._behaviour.silent:
            return
        ok = getattr(self, f"_{op}")(request)
        if op in self._behaviour.descriptors_for:
            body = protocol.encode({"id": request["id"], "ok": ok})
            socket.send_fds(self._connection, [body], [self._arena])
        else:
            self._send({"id": request["id"], "ok": ok})
        if op == protocol.MAP:
            self._enqueue(request["plan"])
        if op == protocol.SUBSCRIBE:
            self._announce(request["plan"])

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return self._behaviour.hello or {
            "protocol": 1,
            "server": "fake",
            "features": self._behaviour.features,
            "block_bytes": self._behaviour.slot_bytes,
            "limits": LIMITS,
        }

    def _plan(self, request: dict[str, Any]) -> dict[str, Any]:
        plans = self._server.plans
        if request.get("append"):
            plans[request["plan"]]["files"] += request["files"]
        else:
            plans[request["plan"]] = dict(request)
        return self._progress(request)

    def _progress(self, request: dict[str, Any]) -> dict[str, Any]:
        total = sum(stop - start for _, start, stop in self._extents(request["plan"]))
        ready = int(total * self._behaviour.ready_share)
        return {"plan": request["plan"], "total_bytes": total, "ready_bytes": ready}

    def _subscribe(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return {}

    def _map(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        size = self._behaviour.slot_bytes
        return {"slot_bytes": size, "size_bytes": size * self._behaviour.slots}

    def _wait(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"plan": request["plan"]}

    def _stats(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return {"v": 1}

    def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        for at in request["slots"]:
            assert at in self._pinned, f"released {at} that was not pinned"
            self._pinned.remove(at)
            os.pwrite(self._arena, NOISE * self._behaviour.slot_bytes, at)
            self._free.append(at)
        return {}

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        self._queue = [entry for entry in self._queue if entry[0] != request["plan"]]
        return {}

    def _announce(self, plan: str) -> None:
        failure = self._behaviour.announce_failure
        for inode, start, stop in self._extents(plan):
            if failure is not None:
                event = {"ev": "failed", "plan": plan, "inode": inode}
                self._send({**event, "code": "EIO", "message": failure})
                continue
            self._send({"ev": "ready", "plan": plan, "inode": inode, "extents": [[start, stop]]})
        if failure is None:
            self._send({"ev": "done", "plan": plan})

    def _enqueue(self, plan: str) -> None:
        size = self._behaviour.slot_bytes
        for inode, start, stop in self._extents(plan):
            for block in range(start // size * size, stop, size):
                piece = (plan, inode, max(start, block), min(stop, block + size))
                self._queue.append(piece)
        if self._behaviour.shuffle is not None:
            self._queue = _shuffled(self._queue, self._behaviour.shuffle)
        self._queue.append((plan, 0, 0, 0))

    def _fill(self) -> None:
        behaviour, server = self._behaviour, self._server
        while self._queue and (self._free or not self._queue[0][1]):
            if behaviour.stall.is_set():
                return
            plan, inode, start, stop = self._queue.pop(0)
            if not inode:
                self._send({"ev": "done", "plan": plan})
                continue
            if server.slots_sent == behaviour.hang_up_after_slots:
                behaviour.hang_up_after_slots = None
                for pinned in self._pinned:
                    self._connection.shutdown(socket.SHUT_RDWR)
                    os.pwrite(self._arena, NOISE * behaviour.slot_bytes, pinned)
                raise BrokenPipeError
            if server.slots_sent == behaviour.fail_after_slots:
                event = {"ev": "failed", "plan": plan, "inode": inode}
                self._send({**event, "code": "EIO", "message": "it is gone"})
                return
            at = self._free.pop(0)
            self._pinned.add(at)
            with open(self._paths()[inode], "rb") as file:
                os.pwrite(self._arena, os.pread(file.fileno(), stop - start, start), at)
            server.slots_sent += 1
            event = {"ev": "slot", "plan": plan, "inode": inode, "start": start}
            self._send({**event, "size": stop - start, "at": at, **behaviour.lie})

    def _extents(self, plan: str) -> Iterator[tuple[int, int, int]]:
        paths = self._paths()
        for file in self._server.plans.get(plan, {"files": []})["files"]:
            whole = [[0, paths[file["inode"]].stat().st_size]]
            for start, stop in file.get("extents", whole):
                yield file["inode"], start, stop

    def _paths(self) -> dict[int, Path]:
        files = [path for path in self._server.folder.rglob("*") if path.is_file()]
        return {path.stat().st_ino: path for path in files}

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(protocol.encode(message))


def _shuffled(
    pieces: list[tuple[str, int, int, int]], dice: random.Random
) -> list[tuple[str, int, int, int]]:
    shuffled = []
    for plan, inode, start, stop in pieces:
        middle = dice.randint(start, stop)
        halves = [(plan, inode, start, middle), (plan, inode, dice.randint(start, middle), stop)]
        shuffled += halves[: 1 + (middle < stop)] if middle > start else halves[1:]
        shuffled += dice.choices([(plan, inode, start, stop)], k=dice.randint(0, 1))
    dice.shuffle(shuffled)
    return shuffled


@contextmanager
def open_hint_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HintServer]:
    """Serve the files of `folder`, which this process takes for a mount of fusefs meanwhile."""
    device = folder.stat().st_dev
    table = folder.parent / f"{folder.name}.mountinfo"
    number = f"{os.major(device)}:{os.minor(device)}"
    table.write_text(f"36 35 {number} / {folder} rw shared:1 - fuse.fusefs fusefs rw\n")
    monkeypatch.setattr(channel, "MOUNTINFO", str(table))
    server = HintServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def _quiet() -> Iterator[None]:
    """Peers come and go."""
    try:
        yield
    except OSError:
        return
