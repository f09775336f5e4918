"""The hints' socket: takes connections, each a task of its own, until the mount is gone.

The listening socket was bound below the mount by the keeper's child (`fusefs.mount.probe`), and
holds the mount like an open file does; so do connections. That is why all of them end as soon as
the mount has been taken from its place: else a plain umount would leave the daemon behind.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import partial

import trio

from fusefs.hints.peer import Credentials, Desk, Peer
from fusefs.hints.visible import visible_roots

log = logging.getLogger("fusefs.hints")

PEERS_MAX = 64
"""Connections at once: the ranks of eight jobs on one node."""

NO_DESCRIPTOR_PAUSE_S = 0.1
"""As trio's own servers wait when there is no descriptor left for a connection."""

_CREDENTIALS = struct.Struct("iII")
"""struct ucred of <linux/socket.h>: pid, uid, gid."""


class Server:
    """Serves the hints of one mount.

    The mutable state of Server is how many connections there are.
    """

    def __init__(self, desk: Desk, find_device: Callable[[], str | None]) -> None:
        self._desk = desk
        self._find_device = find_device
        self._peers = 0

    def gauges(self) -> dict[str, int]:
        """For the status answer."""
        return {"peers": self._peers}

    async def run(self, listener: socket.socket) -> None:
        """Serve until the mount has been taken from its place; then close every connection."""
        try:
            device = self._find_device()
        except OSError as error:
            log.warning("hints are not served: %s", error)
            device = None
        if device is None:
            listener.close()
            return  # unmounted already
        listener.setblocking(False)
        with trio.socket.from_stdlib_socket(listener) as listening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listening, device, nursery)
                try:
                    await wait_until_changed(lambda: self._find_device() != device)
                except OSError as error:  # no descriptor is left: nobody would see an unmount
                    log.warning("hints are not served any more: %s", error)
                nursery.cancel_scope.cancel()

    async def _accept(
        self, listening: trio.socket.SocketType, device: str, nursery: trio.Nursery
    ) -> None:
        while True:
            try:
                connection, _ = await listening.accept()
            except OSError as error:
                if error.errno != errno.ECONNABORTED:  # that one was gone again
                    await trio.sleep(NO_DESCRIPTOR_PAUSE_S)
                continue
            if self._peers >= PEERS_MAX:
                log.info("more than %d connections: one was closed", PEERS_MAX)
                connection.close()
                continue
            self._peers += 1
            nursery.start_soon(self._serve, connection, device)

    async def _serve(self, connection: trio.socket.SocketType, device: str) -> None:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        who = Credentials(*_CREDENTIALS.unpack(raw))
        log.info("a peer connected: pid %d, uid %d", who.pid, who.uid)
        roots = partial(visible_roots, who.pid, device)
        try:
            await Peer(connection, who, self._desk, roots).run()
        except Exception:
            log.exception("a peer's end failed in an unforeseen way")
        finally:
            self._peers -= 1


async def wait_until_changed(is_so: Callable[[], bool]) -> None:
    """Return once `is_so`, which is asked again whenever a mount came or went.

    The mount table is always readable; what tells of a change is POLLPRI (proc(5)), which an epoll
    of its own turns into something that can be waited for.
    """
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        await _wait_until(is_so, table)
    finally:
        os.close(table)


async def _wait_until(is_so: Callable[[], bool], table: int) -> None:
    with select.epoll() as changes:
        changes.register(table, select.EPOLLPRI)
        while not is_so():
            await trio.lowlevel.wait_readable(changes.fileno())
            changes.poll(0)
