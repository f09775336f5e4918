"""The plugin's end of the connection: which mounter serves, and what is asked of it.

Listens for mounters. The newest that says hello serves; an older one that is still there, as in an
upgrade with surge, first lets go of each mount, so that there are never two daemons on one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fusefs.kubernetes.channel import Arrived, Channel, LinkDown
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

RELEASE_TIMEOUT_S = 20.0
"""A daemon that drains has its longest request to finish; then it is ended."""

_CREDENTIALS = struct.Struct("iII")
"""struct ucred of <linux/socket.h>: pid, uid, gid."""


class Mounters:
    """The mounter that serves now, if any. Thread-safe.

    The mutable state of Mounters is the current channel and the estates that it said it holds
    before it was ready.
    """

    def __init__(self, path: Path, uid: int) -> None:
        self._path = path
        self._uid = uid
        self._changed = threading.Condition()
        self._current: Channel | None = None
        self._on_ready: Callable[[Channel | None, Channel, dict[str, Estate]], None] | None = None
        self._on_given_up: Callable[[str], None] | None = None
        self.connections_total = 0

    def start(
        self,
        on_ready: Callable[[Channel | None, Channel, dict[str, Estate]], None],
        on_given_up: Callable[[str], None],
    ) -> None:
        """Listen. `on_ready(old, new, held)` is called for each mounter before it serves.

        `on_given_up(key)` is called when it has given up a mount.
        """
        self._on_ready = on_ready
        self._on_given_up = on_given_up
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self._path))
        os.chown(self._path, -1, self._uid)
        self._path.chmod(0o660)
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), name="link", daemon=True).start()

    @property
    def is_connected(self) -> bool:
        """Whether a mounter serves now."""
        with self._changed:
            return self._current is not None and not self._current.closed

    def wait_connected(self, until: float) -> Channel:
        """The mounter that serves. Raises LinkDown if there is none at this time."""
        with self._changed:
            while self._current is None or self._current.closed:
                left = until - time.monotonic()
                if left <= 0:
                    raise LinkDown(
                        "the mounter does not run on this node: look at its pod and its log"
                    )
                self._changed.wait(min(left, 0.5))
            return self._current

    def serve(self, key: str, estate: Estate, until: float) -> None:
        """Have a mount served. Raises what its source says, or LinkDown."""
        self.wait_connected(until).ask({"op": "serve", "key": key}, until, estate)

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
            connection, _ = listener.accept()
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, uid, _ = _CREDENTIALS.unpack(raw)
            if uid not in (self._uid, 0):
                log.warning("a process of uid %d wanted to be the mounter: refused", uid)
                connection.close()
                continue
            channel = Channel(connection)
            target = partial(self._serve_connection, channel)
            threading.Thread(target=target, name="mounter", daemon=True).start()

    def _serve_connection(self, channel: Channel) -> None:
        held: dict[str, Estate] = {}
        channel.run(lambda arrived: self._take(channel, held, arrived))
        log.warning("the mounter has gone; its mounts wait for the next one")
        with self._changed:
            self._changed.notify_all()

    def _take(self, channel: Channel, held: dict[str, Estate], arrived: Arrived) -> None:
        message = arrived.message
        if message["op"] == "held" and arrived.estate is not None:
            held[message["key"]] = arrived.estate
        elif message["op"] == "ready":
            # Not in this thread: it has to receive the answers to what is asked now.
            target = partial(self._begin, channel, dict(held))
            threading.Thread(target=target, name="resume", daemon=True).start()
        elif message["op"] == "given up" and self._on_given_up is not None:
            self._on_given_up(message["key"])

    def _begin(self, channel: Channel, held: dict[str, Estate]) -> None:
        assert self._on_ready is not None
        with self._changed:
            old, self._current = self._current, channel
            self.connections_total += 1
        if old is not None and old.closed:
            old = None
        self._on_ready(old, channel, held)
        log.info("a mounter is ready")
        with self._changed:
            self._changed.notify_all()
