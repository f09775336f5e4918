"""One connection of the plugin, to the mounter or a sidecar: JSON messages and what they carry.

Either end asks and the other answers; a message may carry a mount's estate, whose descriptors go
with it. The one idea: one thread receives, whoever asked waits on a condition with a limit, so that
a silent other end costs a time and never a thread. A sidecar is its pod's: what it sends has the
shape of a message, or the connection ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusefs.errors import FusefsError, StoreUnavailable, from_wire, to_wire
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

Message = dict[str, Any]

MESSAGE_BYTES_MAX = 64 * 1024
"""A status with all its warnings has some 10 KiB."""


SEND_TIMEOUT_S = 10
"""Of one message: an end that takes nothing off its socket must not hold up the other."""

_TIMEVAL = struct.Struct("ll")
"""struct timeval of <sys/time.h>, for SO_SNDTIMEO."""


class LinkDown(StoreUnavailable):
    """The other end is not there, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message and the estate that came with it."""

    message: Message
    estate: Estate | None


class Channel:
    """One end of the connection. Thread-safe.

    The mutable state of Channel is the number of the next question, the answers that are awaited,
    and whether the other end has gone. INVARIANT: after `closed` nobody waits.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        limit = _TIMEVAL.pack(SEND_TIMEOUT_S, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._next = 0
        self._answers: dict[int, Message | None] = {}
        self.closed = False

    def tell(self, message: Message, estate: Estate | None = None) -> None:
        """Send, and expect nothing. Raises LinkDown."""
        data = json.dumps({**message, "carries": estate is not None}).encode()
        try:
            with self._sending:
                self._connection.send(data)
                if estate is not None:
                    estate.send(self._connection)
        except OSError as error:
            raise LinkDown("the connection between plugin and mounter broke") from error

    def ask(self, message: Message, until: float, estate: Estate | None = None) -> Message:
        """Send, and wait for the answer until this time (of `time.monotonic`).

        Raises LinkDown, or the error that was answered.
        """
        with self._changed:
            self._next += 1
            number = self._next
            self._answers[number] = None
        try:
            self.tell({**message, "id": number}, estate)
            with self._changed:
                while (answer := self._answers[number]) is None:
                    left = until - time.monotonic()
                    if self.closed or left <= 0:
                        raise LinkDown(f"the mounter did not answer {message['op']!r} in time")
                    self._changed.wait(left)
        finally:
            with self._changed:
                del self._answers[number]
        if "error" in answer:
            raise _error_in(answer["error"])
        return answer

    def answer(self, question: Message, answer: Message | FusefsError) -> None:
        """Answer what came; that the asker is gone is its own matter."""
        content = {"error": to_wire(answer)} if isinstance(answer, FusefsError) else answer
        with contextlib.suppress(LinkDown):
            self.tell({"op": "answer", "to": question["id"], **content})

    def run(self, on_message: Callable[[Arrived], None]) -> None:
        """Receive until the other end has gone; answers go to whoever asked."""
        try:
            while (arrived := self._receive()) is not None:
                message = arrived.message
                if message["op"] != "answer":
                    on_message(arrived)
                    continue
                with self._changed:
                    if (number := message.get("to")) in self._answers:
                        self._answers[number] = message
                        self._changed.notify_all()
        finally:
            with self._changed:
                self.closed = True
                self._changed.notify_all()
            self._connection.close()

    def close(self) -> None:
        """End the connection; `run` returns."""
        with contextlib.suppress(OSError):  # it ended by itself
            self._connection.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> Arrived | None:
        try:
            data = self._connection.recv(MESSAGE_BYTES_MAX)
            if not data:
                return None
            message = _read_message(data)
            estate = Estate.receive(self._connection) if message["carries"] else None
        except (OSError, ValueError, RecursionError, FusefsError) as error:
            log.warning("the connection between plugin and mounter broke: %s", error)
            return None
        return Arrived(message, estate)


_SHAPE: dict[str, tuple[type, ...]] = {
    "op": (str,),
    "key": (str, type(None)),
    "to": (int, type(None)),
    "carries": (bool,),
}


def _read_message(data: bytes) -> Message:
    """Raises ValueError or RecursionError if it is none."""
    message = json.loads(data)
    if not isinstance(message, dict) or any(
        not isinstance(message.get(name), kinds) for name, kinds in _SHAPE.items()
    ):
        raise ValueError("what came is no message")
    return message


def _error_in(wire: object) -> FusefsError:
    try:
        return from_wire(wire)  # type: ignore[arg-type] # it is looked at
    except (TypeError, KeyError, AttributeError):
        return FusefsError("the answer was an error without a sentence")
