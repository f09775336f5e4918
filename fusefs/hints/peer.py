"""One connection to the hints' socket: reads requests, one at a time, and answers them.

What a peer sends can end its own connection and nothing else: whatever is no frame of the protocol
does, and a request that cannot be served is answered with an error. Its end cancels its plans.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

import fusefs
from fusefs.hints.duty import Duty
from fusefs.hints.outbox import Outbox, SlowPeer
from fusefs.hints.plans import Engine, PeerPlans
from fusefs.hints.wishes import Refused, plan_wish, speaks_our_version, wait_wish
from loaderhint import protocol
from loaderhint.protocol import Frames, ProtocolError

log = logging.getLogger("fusefs.hints")

RECEIVE_BYTES = 64 << 10
WAITS_MAX = 256
"""Waits of one peer at once: a loader waits for the next tensor, or for that of each thread."""

HELLO_WITHIN_S = 30.0
"""A connection that does not introduce itself only takes another one's place."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every peer is served with."""

    engine: Engine
    block_bytes: int
    stats: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who connected, by SO_PEERCRED; pid 0 is a process of another pid namespace."""

    pid: int
    uid: int
    gid: int


class Peer:
    """One connection.

    The mutable state of Peer is whether it said hello, its plans, and the waits under way.
    """

    def __init__(
        self,
        connection: trio.socket.SocketType,
        credentials: Credentials,
        desk: Desk,
        roots: Callable[[], list[str] | None],
    ) -> None:
        self._connection = connection
        self._credentials = credentials
        self._desk = desk
        self._outbox = Outbox(connection)
        self._duty = Duty()
        self._plans = PeerPlans(desk.engine, self._outbox, self._duty, roots)
        self._greeted = False
        self._waits = 0

    async def run(self) -> None:
        """Serve the peer until it is gone. Raises nothing."""
        try:
            async with trio.open_nursery() as nursery:
                ending = nursery.cancel_scope
                nursery.start_soon(self._half, self._outbox.run, ending)
                await self._half(partial(self._receive, nursery), ending)
        finally:
            self._connection.close()  # first: who sees no end yet still holds its slots
            self._outbox.close()
            self._plans.close()
            log.info("the peer with pid %d is gone", self._credentials.pid)

    async def _half(self, run: Callable[[], Awaitable[None]], ending: trio.CancelScope) -> None:
        """Receive or send; the end of one is the end of both."""
        try:
            await run()
        except (OSError, ProtocolError, SlowPeer) as error:
            log.info("the peer with pid %d is let go: %s", self._credentials.pid, error)
        except Exception:
            log.exception("a peer's connection failed in an unforeseen way")
        finally:
            ending.cancel()

    async def _receive(self, nursery: trio.Nursery) -> None:
        """Read requests until the peer closes. Raises ProtocolError, OSError."""
        frames = Frames()
        with trio.move_on_after(HELLO_WITHIN_S) as introduction:
            while data := await self._connection.recv(RECEIVE_BYTES):
                messages = frames.feed(data)
                while True:
                    with self._duty.working():
                        message = next(messages, None)
                    if message is None:
                        break
                    await trio.lowlevel.checkpoint()  # READs come first
                    await self._outbox.wait_room()
                    await self._serve(message, nursery)
                    if self._greeted:
                        introduction.deadline = float("inf")
                    await trio.sleep(self._duty.pause_s())  # and let READs come first

    async def _serve(self, message: dict[str, Any], nursery: trio.Nursery) -> None:
        number = message.get("id")
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise ProtocolError("a request has an id, a whole number")
        operation = message.get("op")
        if not self._greeted and operation != protocol.HELLO:
            self._refuse(number, Refused(errno.EPROTO, "say hello first"))
            return
        try:
            if operation == protocol.WAIT:
                self._start_wait(number, message, nursery)
                return
            if operation == protocol.PLAN:
                with self._duty.working():
                    wish = plan_wish(message)
                await trio.lowlevel.checkpoint()  # a long one took 30 ms by now
                answer = await self._plans.plan(wish, message)
            elif operation == protocol.MAP:
                answer, fd = self._plans.map(message)
                self._outbox.answer({"id": number, "ok": answer}, fd)
                return
            else:
                with self._duty.working():
                    answer = self._answer(operation, message)
        except Refused as refused:
            self._refuse(number, refused)
            return
        self._outbox.answer({"id": number, "ok": answer})

    def _answer(self, operation: object, message: Mapping[str, Any]) -> dict[str, Any]:
        plans = self._plans
        match operation:
            case protocol.HELLO:
                return self._hello(message)
            case protocol.SUBSCRIBE:
                return plans.subscribe(message)
            case protocol.RELEASE:
                return plans.release(message)
            case protocol.CANCEL:
                return plans.cancel(message)
            case protocol.PROGRESS:
                return plans.progress(message)
            case protocol.STATS:
                stats: dict[str, Any] = json.loads(self._desk.stats())
                return stats
        raise Refused(errno.EOPNOTSUPP, "no such operation")

    def _hello(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if not speaks_our_version(message):
            raise Refused(errno.EPROTONOSUPPORT, f"served is version {protocol.VERSION}")
        self._greeted = True
        return {
            "protocol": protocol.VERSION,
            "server": f"fusefs {fusefs.__version__}",
            "features": ["warm", "slots"] if self._plans.why_no_slots() is None else ["warm"],
            "block_bytes": self._desk.block_bytes,
            "limits": {
                "frame_bytes": protocol.FRAME_BYTES_MAX,
                "extents": protocol.EXTENTS_MAX,
                "files": protocol.FILES_MAX,
                "plans": protocol.PLANS_MAX,
            },
        }

    def _start_wait(self, number: int, message: Mapping[str, Any], nursery: trio.Nursery) -> None:
        if self._waits >= WAITS_MAX:
            raise Refused(errno.EAGAIN, f"more waits at once than {WAITS_MAX}")
        wish = wait_wish(message)
        self._waits += 1

        async def wait() -> None:
            try:
                self._outbox.answer({"id": number, "ok": await self._plans.wait(wish)})
            except Refused as refused:
                self._refuse(number, refused)
            finally:
                self._waits -= 1

        nursery.start_soon(self._guarded, wait)

    async def _guarded(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except Exception:
            log.exception("a peer's wait failed in an unforeseen way")

    def _refuse(self, number: int, refused: Refused) -> None:
        error = {"code": refused.code, "message": str(refused)}
        self._outbox.answer({"id": number, "error": error})
