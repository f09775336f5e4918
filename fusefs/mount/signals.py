"""Signals as something that can be waited for beside sockets: the keeper has no trio."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Iterable

STOP = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
UPGRADE = signal.SIGUSR1


class Stopped(Exception):
    """A signal asked to stop before the mount was ready."""


class Signals:
    """The signals that came, and waiting for more.

    The mutable state of Signals is `_came`. INVARIANT: from `watch` on none is lost.
    """

    def __init__(self) -> None:
        self._wake, self._wake_end = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_end.setblocking(False)
        self._came: set[int] = set()

    def watch(self) -> None:
        """From now on signals end no process: they are noted here."""
        for number in (*STOP, UPGRADE, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_end.fileno())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def block(self) -> None:
        """Keep signals waiting for the program that takes our place."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP, UPGRADE, signal.SIGCHLD))

    @property
    def ask_to_stop(self) -> bool:
        """Whether somebody wants us to unmount."""
        return bool(self._came & STOP)

    def take_upgrade(self) -> bool:
        """Whether somebody asked for an upgrade; told once."""
        asked = UPGRADE in self._came
        self._came.discard(UPGRADE)
        return asked

    def wait(self, sources: Iterable[socket.socket | int], until_s: float | None) -> set[int]:
        """Sleep until a source can be read, a signal comes, or it is `until_s` (monotonic).

        Returns the numbers of the sources that can be read. A mount table among them, as which a
        plain number counts, can be read when a mount came or went (proc(5): POLLPRI).
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for source in sources:
            poll.register(source, select.POLLPRI if isinstance(source, int) else select.POLLIN)
        timeout_ms = None if until_s is None else max(0.0, until_s - time.monotonic()) * 1000
        ready = {fd for fd, _ in poll.poll(timeout_ms)}
        if self._wake.fileno() in ready:
            ready.discard(self._wake.fileno())
            self._came.update(self._wake.recv(4096))
        return ready
