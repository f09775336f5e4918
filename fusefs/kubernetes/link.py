"""The plugin's end of a link: who serves at its other end, and what is asked of them.

One link is the mounter's, of all mounts that pods share; each pod's sidecar has its own, of one
mount. The newest that says it is ready serves; an older one that is still there, as in an upgrade
with surge, first lets go of each mount, so that there are never two daemons on one.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from fusefs.kubernetes.channel import Arrived, Channel, LinkDown, Message
from fusefs.kubernetes.records import Record
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

RELEASE_TIMEOUT_S = 20.0
"""A daemon that drains has its longest request to finish; then it is ended."""

_CREDENTIALS = struct.Struct("iII")
"""struct ucred of <linux/socket.h>: pid, uid, gid."""


STRANGERS_MAX = 4
"""Connections at once to a pod's own link: one serves, one may take its place."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told: `on_ready(old, new, held)` for each that connects, before it serves.

    `on_given_up(key)` when it has given up a mount, `on_gone(in_order)` when the one that served
    has gone, by its own word or without one.
    """

    on_ready: Callable[[Channel | None, Channel, dict[str, Estate]], None]
    on_given_up: Callable[[str], None]
    on_gone: Callable[[bool], None] = lambda in_order: None


class Link:
    """Who serves now, if anybody. Thread-safe.

    `uid` is the one that may connect, or None for whoever finds the socket; `only` is the one key
    that is spoken of, or None for all. The mutable state of Link is the current channel, those that
    are open, and the estates that were said to be held before "ready".
    """

    def __init__(self, who: str, uid: int | None = None, only: str | None = None) -> None:
        self.who = who
        self._uid = uid
        self._only = only
        self._changed = threading.Condition()
        self._current: Channel | None = None
        self._open: set[Channel] = set()
        self._callbacks: Callbacks | None = None
        self._listener: socket.socket | None = None
        self.connections_total = 0

    def start(self, listener: socket.socket, callbacks: Callbacks) -> None:
        """Take connections from `listener`, which is the link's from then on."""
        self._callbacks = callbacks
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="link", daemon=True).start()

    def close(self) -> None:
        """Take none any more, and end those that are there: whoever waits for them goes on."""
        with self._changed:
            listener, self._listener = self._listener, None
            channels = list(self._open)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # which ends the accept under way
            listener.close()
        for channel in channels:
            channel.close()

    @property
    def is_connected(self) -> bool:
        """Whether somebody serves now."""
        with self._changed:
            return self._current is not None and not self._current.closed

    def wait_connected(self, until: float) -> Channel:
        """Whoever serves. Raises LinkDown if nobody does at this time."""
        with self._changed:
            while self._current is None or self._current.closed:
                left = until - time.monotonic()
                if left <= 0:
                    raise LinkDown(f"{self.who} does not run: look at its pod and its log")
                self._changed.wait(min(left, 0.5))
            return self._current

    def serve(self, record: Record, estate: Estate, until: float) -> None:
        """Have a mount served. Raises what its source says, or LinkDown."""
        self.wait_connected(until).ask(serve_message(record), until, estate)

    def renew(self, key: str) -> None:
        """Have a mount served with the credentials that are in its folder now."""
        with contextlib.suppress(LinkDown):  # whoever comes reads them anyway
            self.wait_connected(0).tell({"op": "renew", "key": key})

    def hand_listener(self, key: str, estate: Estate) -> None:
        """Give a mount the socket of its hints. Raises LinkDown."""
        self.wait_connected(0).tell({"op": "listener", "key": key}, estate)

    def release(self, key: str) -> None:
        """Have a mount served no more; that nobody serves it is fine."""
        with contextlib.suppress(LinkDown):
            channel = self.wait_connected(0)
            channel.ask({"op": "release", "key": key}, time.monotonic() + RELEASE_TIMEOUT_S)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, uid, _ = _CREDENTIALS.unpack(raw)
            if self._uid is not None and uid not in (self._uid, 0):
                log.warning("a process of uid %d wanted to be the mounter: refused", uid)
                connection.close()
                continue
            channel = Channel(connection)
            with self._changed:
                is_one_too_many = self._uid is None and len(self._open) >= STRANGERS_MAX
                if self._listener is None or is_one_too_many:
                    connection.close()
                    continue
                self._open.add(channel)
            target = partial(self._serve_connection, channel)
            threading.Thread(target=target, name="served", daemon=True).start()

    def _serve_connection(self, channel: Channel) -> None:
        talk = _Talk()
        try:
            channel.run(lambda arrived: self._take(channel, talk, arrived))
        finally:
            with self._changed:
                self._open.discard(channel)
                served = self._current is channel
                closed = self._listener is None
                self._changed.notify_all()
            talk.close()
        if served and not closed:
            log.warning("%s has gone; what it served waits for the next one", self.who)
            assert self._callbacks is not None
            self._callbacks.on_gone(talk.is_leaving)

    def _take(self, channel: Channel, talk: _Talk, arrived: Arrived) -> None:
        message, estate = arrived.message, arrived.estate
        operation, key = message["op"], message.get("key")
        if self._only is not None and key != self._only:
            key = None  # of no business of this link
        if operation == "held" and estate is not None and key is not None and not talk.is_ready:
            talk.hold(key, estate)
            return
        if estate is not None:
            estate.close()
        if operation == "ready" and not talk.is_ready:
            # Not in this thread: it has to receive the answers to what is asked now.
            target = partial(self._begin, channel, talk.hand_over())
            threading.Thread(target=target, name="resume", daemon=True).start()
        elif operation == "leaving":
            talk.is_leaving = True
        elif operation == "given up" and key is not None and key not in talk.given_up:
            assert self._callbacks is not None
            talk.given_up.add(key)
            target = partial(self._callbacks.on_given_up, key)  # which may wait for an answer
            threading.Thread(target=target, name="give up", daemon=True).start()

    def _begin(self, channel: Channel, held: dict[str, Estate]) -> None:
        assert self._callbacks is not None
        with self._changed:
            old, self._current = self._current, channel
            self.connections_total += 1
        if old is not None and old.closed:
            old = None
        self._callbacks.on_ready(old, channel, held)
        log.info("%s is ready", self.who)
        with self._changed:
            self._changed.notify_all()
        if channel.closed:  # it may have gone before it was the current one
            self._callbacks.on_gone(False)


def serve_message(record: Record) -> Message:
    """What asks for a mount to be served. The mounter reads the record itself; a sidecar cannot."""
    message: Message = {"op": "serve", "key": record.key}
    if record.meeting is not None:
        message["record"] = asdict(record)
    return message


class _Talk:
    """What one connection said so far.

    The mutable state of _Talk is that. INVARIANT: it owns the estates in `_held` until they are
    handed over, once.
    """

    def __init__(self) -> None:
        self._held: dict[str, Estate] = {}
        self.given_up: set[str] = set()
        self.is_ready = False
        self.is_leaving = False

    def hold(self, key: str, estate: Estate) -> None:
        """It holds this."""
        if (earlier := self._held.pop(key, None)) is not None:
            earlier.close()
        self._held[key] = estate

    def hand_over(self) -> dict[str, Estate]:
        """It is ready: all that it holds, the caller's from now on."""
        self.is_ready = True
        held, self._held = self._held, {}
        return held

    def close(self) -> None:
        """Let go of what was not handed over."""
        for estate in self._held.values():
            estate.close()
