"""One mount that the mounter serves: its keeper, started from an estate and started again.

The keeper (`fusefs.mount.keeper --adopt`) looks after the daemon; this looks after the keeper. The
one idea: a keeper leads a session, and before another one starts, every process of that session is
dead, for two daemons on one connection stall each other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fusefs.errors import ConfigError, FusefsError, StoreUnavailable, from_wire
from fusefs.kubernetes.records import Record
from fusefs.kubernetes.surroundings import environment_for
from fusefs.mount import kernel
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

REPORT_TIMEOUT_S = 45.0
"""The keeper checks the source with a shorter deadline of its own."""

STOP_TIMEOUT_S = 15.0
"""A keeper gives its daemon 10 s to answer what it has in hand."""

PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Before a keeper is started again, by how often it just died: a crash loop costs little."""

STEADY_S = 60.0
"""One that lived so long owes nothing to earlier deaths."""

_LINE_BYTES_MAX = 65536


class Serving:
    """The keeper of one mount key. Thread-safe.

    `folder` holds the credentials of its daemon, whose environment is otherwise without any; None
    if the daemon's are our own.

    The mutable state of Serving is the keeper that runs, the estate (which gains its listener
    later), and whether the end was asked for. INVARIANT: `_process` is changed under `_lock` only,
    and at most one session of this key lives.
    """

    _keepers: ClassVar[set[int]] = set()
    """Processes that somebody here waits for."""

    def __init__(
        self,
        record: Record,
        folder: Path | None,
        estate: Estate,
        given_up: Callable[[str], None],
    ) -> None:
        self.key = record.key
        self._folder = folder
        self._record = record
        self._given_up = given_up
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self.estate = estate
        self.recoveries = 0

    @classmethod
    def is_keeper(cls, pid: int) -> bool:
        """Whether this process is one that is waited for."""
        return pid in cls._keepers

    @property
    def record(self) -> Record:
        """What is served."""
        return self._record

    def start(self) -> None:
        """Start a keeper and wait until it serves. Raises what the source says, or OSError."""
        with self._lock:
            self._start()
            process = self._process
        threading.Thread(target=self._attend, args=(process,), name=self.key, daemon=True).start()

    def stop(self) -> None:
        """Let the daemon answer what it has in hand, and end all. The mount stays."""
        self._ended.set()
        with self._lock:
            self._stop_process()

    def restart(self) -> None:
        """End the keeper in order; another one is started with the credentials of now."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()

    def add_listener(self, estate: Estate) -> None:
        """The hints' socket was bound: give it to the keeper, and keep it for the next."""
        with self._lock:
            old, self.estate = self.estate, estate
            old.close()
            if self._link is not None:
                with contextlib.suppress(OSError):  # it just died; the next one gets all
                    estate.send(self._link)

    def _start(self) -> None:
        """Raises FusefsError or OSError; then no process is left."""
        if self._folder is None:
            environment = dict(os.environ)
        else:
            _check_folder(self._record.source)
            environment = environment_for(self._record, self._folder)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report_end, keepers_end = os.pipe()
        job_fd = os.memfd_create("fusefs-job")
        os.write(job_fd, json.dumps(self._job()).encode())
        fds = (theirs.fileno(), job_fd, keepers_end)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fusefs.mount.keeper", "--adopt", *map(str, fds)],
                pass_fds=fds,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )
        except OSError:
            os.close(report_end)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(job_fd)
            os.close(keepers_end)
        self._keepers.add(self._process.pid)
        self._link = ours
        try:
            self.estate.send(ours)
            _check(_read_report(report_end))
        except (FusefsError, OSError):
            self._stop_process()
            raise

    def _job(self) -> dict[str, Any]:
        return {
            "source": self._record.source,
            "mountpoint": f"the volume {self.key}",  # not to be seen from here
            "config": self._record.config,
            "foreground": True,
        }

    def _attend(self, process: subprocess.Popen[bytes] | None) -> None:
        """Put another keeper in the place of one that ended, until the end is asked for."""
        deaths = 0
        while process is not None and not self._ended.is_set():
            began = time.monotonic()
            status = process.wait()
            deaths = 0 if time.monotonic() - began > STEADY_S else deaths
            if self._ended.wait(PAUSES_S[min(deaths, len(PAUSES_S) - 1)]):
                return
            if not kernel.is_connected(self.estate.fuse_fd):
                return  # unmounted or aborted: there is nothing to serve
            if status == 1:
                log.error("the mount %s is given up by its keeper", self.key)
                self._given_up(self.key)
                return
            deaths += 1
            process = self._start_again(status)

    def _start_again(self, status: int) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._ended.is_set():
                return None
            if status:
                self.recoveries += 1
                log.warning("the keeper of %s ended with status %d: another one", self.key, status)
            self._stop_process()
            try:
                self._start()
            except (FusefsError, OSError) as error:
                log.error("the mount %s is not served: %s", self.key, error)  # noqa: TRY400
            return self._process

    def _stop_process(self) -> None:
        """End the keeper, and whatever of its session outlived it."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        _end_session(process.pid)
        process.wait()
        self._keepers.discard(process.pid)
        if self._link is not None:
            self._link.close()
            self._link = None


def _check_folder(source: str) -> None:
    """Refuse a folder behind a symbolic link. Raises ConfigError.

    Plugins allow folders below one root. Who may write there could make a link that leads to
    what this process alone may read: other volumes' credentials.
    """
    scheme, _, path = source.partition("://")
    if scheme == "file" and os.path.realpath(path) != os.path.normpath(path):
        raise ConfigError(
            f"the source {source} leads through a symbolic link: name the folder behind it"
        )


def _check(line: bytes | None) -> None:
    """Return if a keeper's report says that it serves. Raises what it says instead."""
    if line is None:
        raise StoreUnavailable("the mount did not come up in time; see the mounter's log")
    try:
        report = json.loads(line)
    except ValueError:
        raise FusefsError("the keeper died before it served; see the mounter's log") from None
    if not report["ok"]:
        raise from_wire({"class": report.get("class", "FusefsError"), "message": report["message"]})


def _read_report(fd: int) -> bytes | None:
    """One line, what there was before the end of the pipe, or None when time is up."""
    until = time.monotonic() + REPORT_TIMEOUT_S
    data = b""
    with open(fd, "rb", buffering=0) as pipe:
        while not data.endswith(b"\n") and len(data) < _LINE_BYTES_MAX:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            piece = pipe.read(_LINE_BYTES_MAX)
            if not piece:
                break
            data += piece
    return data


def _end_session(session: int) -> None:
    """Kill every process of a session, and wait until they are gone."""
    until = time.monotonic() + STOP_TIMEOUT_S
    while pids := _session_pids(session):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            log.error("processes hang in the kernel and cannot be killed: %s", pids)
            return
        time.sleep(0.01)  # for the kernel to take them away: nothing tells of it


def _session_pids(session: int) -> list[int]:
    """The live processes of a session (proc_pid_stat(5): fields 3 and 6)."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found
