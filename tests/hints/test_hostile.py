"""Peers that mean harm, or are broken: they end themselves, and readers notice nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loaderhint.protocol import FRAME_BYTES_MAX, encode
from tests.harness.mounted import Mounted, open_mount
from tests.hints.client import Client, connect, inode
from tests.hints.conftest import MIB

ROUNDS_MIN = 3


@contextmanager
def reading(mounted: Mounted, plain: Path) -> Iterator[None]:
    """Read a file over and over, from the daemon each time; all bytes must be right.

    At least `ROUNDS_MIN` rounds are read after the block of the `with` is through.
    """
    want = (plain / "a.safetensors").read_bytes()
    path = mounted.path / "a.safetensors"
    rounds: list[str] = []
    over = threading.Event()

    def read() -> None:
        left = ROUNDS_MIN
        while left:
            left -= over.is_set()
            try:
                with path.open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    same = b"".join(iter(lambda: file.read(MIB), b"")) == want
                rounds.append("right" if same else "wrong")
            except OSError as error:
                rounds.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert not thread.is_alive()
    assert len(rounds) >= ROUNDS_MIN
    assert set(rounds) == {"right"}


@pytest.fixture
def small(weights: Path) -> Iterator[Mounted]:
    """A mount with an arena that no file fits into: blocks are evicted all the time.

    Nothing is pushed, so that every byte read is read from the daemon.
    """
    options = ("--memory", "16M", "--set", "kernel.push=false")
    with open_mount(f"file://{weights}", *options) as mount:
        yield mount


GARBAGE = {
    "noise": os.urandom(4096),
    "nothing of length 0": b"\0\0\0\0",
    "too long": (FRAME_BYTES_MAX + 1).to_bytes(4, "little") + b"{",
    "longest": b"\xff\xff\xff\xff",
    "no object": (2).to_bytes(4, "little") + b"[]",
    "no UTF-8": (4).to_bytes(4, "little") + b'"\xff\xff"',
    "deep": (100_000).to_bytes(4, "little") + b"[" * 100_000,
    "no id": encode({"op": "stats"}),
    "a text for an id": encode({"id": "x", "op": "stats"}),
    "a huge id": encode({"id": 1 << 64, "op": "stats"}),
}


@pytest.mark.parametrize("greet", [True, False], ids=["after hello", "before hello"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_ends_its_own_connection(mounted_for_all: Mounted, kind: str, greet: bool) -> None:
    """Whatever is no frame closes the connection it came on, and no other."""
    with connect(mounted_for_all.path) as other:
        with connect(mounted_for_all.path, greet=greet) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.socket.sendall(GARBAGE[kind])
            assert client.is_closed()
        assert other.ask("stats")["counters"]["read_errors"] == 0


def test_half_a_message_waits_and_harms_nobody(mounted_for_all: Mounted) -> None:
    """A frame may come byte by byte; one that never ends holds nothing but its connection."""
    with connect(mounted_for_all.path) as slow, connect(mounted_for_all.path) as other:
        frame = encode({"id": 500, "op": "stats"})
        for byte in frame[:-1]:
            slow.socket.send(bytes([byte]))
        other.ask("stats")
        slow.socket.send(frame[-1:])
        assert "ok" in slow.answer(500)
        slow.socket.send(frame[:7])
        slow.socket.shutdown(socket.SHUT_WR)
        assert slow.is_closed()


def test_a_million_extents_are_refused(small: Mounted, weights: Path) -> None:
    """They come in pieces, hit the limit of the connection, and the rest of it goes on."""
    number = inode(small.path / "a.safetensors")
    with reading(small, weights), connect(small.path) as client:
        codes = []
        for piece in range(25):
            extents = [[i * 2, i * 2 + 1] for i in range(piece * 40_000, (piece + 1) * 40_000)]
            wish = {"inode": number, "extents": extents}
            sent = client.send("plan", plan="p", append=piece > 0, files=[wish])
            codes.append(client.answer(sent).get("error", {}).get("code"))
        assert codes[0] is None
        assert set(codes[3:]) == {"ENOSPC"}
        client.ask("cancel", plan="p")
        assert client.ask("plan", plan="p", files=[{"inode": number}])["total_bytes"] > 0


def test_the_65th_plan_is_refused(mounted_for_all: Mounted) -> None:
    """And when one is cancelled there is a place again."""
    number = inode(mounted_for_all.path / "b.safetensors")
    with connect(mounted_for_all.path) as client:
        for plan in range(64):
            wish = {"inode": number, "extents": [[plan, plan + 1]]}
            client.ask("plan", plan=f"{plan}", files=[wish])
        assert client.refused("plan", plan="64", files=[{"inode": number}]) == "ENOSPC"
        client.ask("cancel", plan="0")
        client.ask("plan", plan="64", files=[{"inode": number, "extents": [[0, 1]]}])


def test_the_65th_connection_is_closed(mounted_for_all: Mounted) -> None:
    """And the ones before it are served; when one leaves there is a place again."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(mounted_for_all.path)) for _ in range(64)]
        with connect(mounted_for_all.path, greet=False) as late:
            assert late.is_closed()
        clients[0].ask("stats")
        clients.pop().socket.close()
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), connect(mounted_for_all.path) as again:
                again.ask("stats")
                break
            assert time.monotonic() < deadline


def test_a_flood_of_requests_does_not_stop_readers(small: Mounted, weights: Path) -> None:
    """Eight peers that send as fast as they can, and read no answer, are held back."""
    number = inode(small.path / "a.safetensors")
    request = encode({"id": 1, "op": "plan", "plan": "p", "files": [{"inode": number}]})
    over = threading.Event()
    sent = [0] * 8

    def flood(number: int, client: Client) -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                sent[number] += client.socket.send(request * 100)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(small.path)) for _ in sent]
        for client in clients:
            client.socket.settimeout(0.1)
        floods = [
            threading.Thread(target=flood, args=(number, client), daemon=True)
            for number, client in enumerate(clients)
        ]
        for thread in floods:
            thread.start()
        try:
            with reading(small, weights):
                pass  # its rounds come after this
        finally:
            over.set()
            for thread in floods:
                thread.join(20)
        assert not any(thread.is_alive() for thread in floods)
        assert min(sent) >= len(request)
        assert small.status()["counters"]["read_errors"] == 0


def test_events_that_are_never_read_hold_nobody_up(small: Mounted, weights: Path) -> None:
    """A peer that subscribes to everything and reads nothing costs readers nothing."""
    number = inode(small.path / "a.safetensors")
    with connect(small.path) as deaf, reading(small, weights):
        for plan in range(60):
            extents = [[i * 4096, i * 4096 + 4095] for i in range(plan, 6000, 60)]
            deaf.send("plan", plan=f"{plan}", files=[{"inode": number, "extents": extents}])
            deaf.send("subscribe", plan=f"{plan}", every_bytes=1)
    assert small.status()["counters"]["read_errors"] == 0


def test_connecting_and_leaving_leaves_nothing(mounted_for_all: Mounted) -> None:
    """Hundreds of connections with plans, ended at once: no descriptor stays with the daemon."""
    number = inode(mounted_for_all.path / "a.safetensors")
    daemon = mounted_for_all.status()["pids"]["daemon"]
    before = len(os.listdir(f"/proc/{daemon}/fd"))
    for _ in range(200):
        with connect(mounted_for_all.path) as client:
            client.send("plan", plan="p", files=[{"inode": number}])
            client.send("subscribe", plan="p")
            client.send("wait", plan="p", inode=number, start=0, stop=20 * MIB, timeout_ms=10_000)
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{daemon}/fd")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
