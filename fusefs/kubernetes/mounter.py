"""The unprivileged process that serves: `fusefs csi-mounter`, or `csi-sidecar` in a pod of others.

Process 1 of its container. Connects to the plugin, takes mounts from it, and runs a keeper for
each. It holds the second copy of all that a mount needs to live on: a keeper that died is started
again from it, and a plugin that was started anew gets it back. It has no privilege, mounts nothing
and sees no mount.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import fusefs
from fusefs.errors import FusefsError
from fusefs.kubernetes.channel import Arrived, Channel, LinkDown, Message
from fusefs.kubernetes.places import link_of
from fusefs.kubernetes.records import Record, read_record
from fusefs.kubernetes.serving import Serving
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

REAP_S = 1.0
"""Between two looks for orphans: there is one for each keeper that is killed."""

CONNECT_PAUSE_S = 0.2
"""Between two looks for a plugin that is away: it is an upgrade, some seconds."""


class Mounter:
    """All mounts that are served here.

    The mutable state of Mounter is `_served`, by key, and the channel to the plugin. Whoever
    changes `_served` holds `_lock`; what takes time happens in a thread of that mount.
    """

    def __init__(self, run_folder: Path) -> None:
        self._run = run_folder
        self._lock = threading.Lock()
        self._served: dict[str, Serving] = {}
        self._channel: Channel | None = None
        self._ending = threading.Event()
        self._trouble: str | None = "the plugin has not asked for anything to be served yet"

    @property
    def trouble(self) -> str | None:
        """Why nothing is served, in one sentence; None once a mount is, whatever comes later."""
        return self._trouble

    @property
    def is_connected(self) -> bool:
        """Whether the plugin is there."""
        return self._channel is not None and not self._channel.closed

    def run(self) -> None:
        """Serve until `stop`; a plugin that goes is waited for."""
        said = False
        while not self._ending.is_set():
            try:
                connection = _connect(link_of(self._run))
            except OSError as error:
                if not said:
                    log.info("waiting for the plugin at %s: %s", link_of(self._run), error.strerror)
                said = True
                self._ending.wait(CONNECT_PAUSE_S)
                continue
            said = False
            self._speak(connection)

    def stop(self) -> None:
        """End all daemons in order; the mounts live on, with the plugin."""
        self._ending.set()
        if self._channel is not None:
            with contextlib.suppress(LinkDown):
                self._channel.tell({"op": "leaving"})
        with self._lock:
            served, self._served = self._served, {}
        threads = [threading.Thread(target=serving.stop) for serving in served.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._channel is not None:
            self._channel.close()

    def all(self) -> list[Serving]:
        """Every mount that is served."""
        with self._lock:
            return list(self._served.values())

    def _speak(self, connection: socket.socket) -> None:
        channel = self._channel = Channel(connection)
        log.info("connected to the plugin")
        try:
            channel.tell({"op": "hello", "version": fusefs.__version__})
            for serving in self.all():
                channel.tell({"op": "held", "key": serving.key}, serving.estate)
            channel.tell({"op": "ready"})
        except LinkDown:
            return
        channel.run(lambda arrived: self._take(channel, arrived))
        if not self._ending.is_set():
            log.warning("the plugin has gone; its mounts are served on")

    def _take(self, channel: Channel, arrived: Arrived) -> None:
        message = arrived.message
        if message["op"] == "serve" and arrived.estate is not None:
            self._serve(channel, message, arrived.estate)
            return
        with self._lock:
            serving = self._served.get(message["key"])
        if serving is None:
            if arrived.estate is not None:
                arrived.estate.close()
            if "id" in message:
                channel.answer(message, {})
        elif message["op"] == "listener" and arrived.estate is not None:
            serving.add_listener(arrived.estate)
        elif message["op"] in ("release", "drop"):
            with self._lock:
                self._served.pop(serving.key, None)
            _in_thread(self._release, channel, message, serving)
        elif message["op"] == "renew":
            serving.restart()

    def _serve(self, channel: Channel, message: Message, estate: Estate) -> None:
        # A sidecar is told what to serve, and has credentials of its own.
        if "record" in message:
            folder, record = None, Record(**message["record"])
        else:
            folder = self._run / "keys" / message["key"]
            record = read_record(folder)
        serving = Serving(record, folder, estate, self._tell_given_up)
        with self._lock:
            self._served[serving.key] = serving
        _in_thread(self._start, channel, message, serving)

    def _start(self, channel: Channel, message: Message, serving: Serving) -> None:
        try:
            serving.start()
        except (FusefsError, OSError) as error:
            with self._lock:
                self._served.pop(serving.key, None)
            serving.stop()
            serving.estate.close()
            refused = error if isinstance(error, FusefsError) else FusefsError(str(error))
            log.error("%s cannot be served: %s", serving.record.source, refused)  # noqa: TRY400
            if self._trouble is not None:
                self._trouble = str(refused)
            channel.answer(message, refused)
        else:
            self._trouble = None
            channel.answer(message, {})

    def _release(self, channel: Channel, message: Message, serving: Serving) -> None:
        serving.stop()
        serving.estate.close()
        if "id" in message:
            channel.answer(message, {})

    def _tell_given_up(self, key: str) -> None:
        with self._lock:
            serving = self._served.pop(key, None)
        if serving is not None:
            serving.stop()
            serving.estate.close()
        if self._channel is not None:
            with contextlib.suppress(LinkDown):  # a new plugin finds that it is not held
                self._channel.tell({"op": "given up", "key": key})


def _connect(path: Path) -> socket.socket:
    # By the folder's descriptor: names of sockets have 107 bytes at most.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


def _in_thread(work: Any, *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def reap_orphans(stop: threading.Event) -> None:
    """As process 1: take leave of processes whose parents ended before them.

    Keepers are left to whoever waits for them: they are looked at, and not reaped.
    """
    while not stop.wait(REAP_S):
        for pid in _zombies():
            if not Serving.is_keeper(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _zombies() -> list[int]:
    """Our children that have ended."""
    found = []
    for thread in os.scandir("/proc/self/task"):
        for text in Path(thread.path, "children").read_text().split():
            with contextlib.suppress(OSError):  # reaped meanwhile
                state = Path(f"/proc/{text}/stat").read_text().rpartition(")")[2].split()[0]
                if state == "Z":
                    found.append(int(text))
    return found


def run_mounter(run_folder: Path, http_port: int) -> int:
    """Serve until SIGTERM; exit status 0."""
    from fusefs.kubernetes.http import serve_http
    from fusefs.kubernetes.metrics import mounter_metrics

    mounter = Mounter(run_folder)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if http_port:
        metrics = partial(mounter_metrics, mounter)
        serve_http(http_port, lambda: None, metrics, lambda: mounter.trouble)
    threading.Thread(target=mounter.run, name="link", daemon=True).start()
    if os.getpid() == 1:
        threading.Thread(target=reap_orphans, args=(ended,), name="reaper", daemon=True).start()
    ended.wait()
    started = time.monotonic()
    mounter.stop()
    log.info("ended in order after %.1f s", time.monotonic() - started)
    return 0
