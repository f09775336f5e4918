"""The parent of a mount: mounts, starts daemons one after another, and cleans up.

    python -m fusefs.mount.keeper JOB_FD REPORT_FD                   mount, and keep the mount
    python -m fusefs.mount.keeper --adopt ESTATE_FD JOB_FD REPORT_FD  keep what another one mounted
    python -m fusefs.mount.keeper --version                          {"estate": N, "version": "…"}

JOB_FD is a file with the job (JSON: source, mountpoint, config, foreground). ESTATE_FD is a
connected SEQPACKET socket on which an `Estate` was sent, or will be. On REPORT_FD one line is
written: {"ok": true, "pid": …} once the mount is served, else {"ok": false, "status", "message"}.
A keeper that adopted neither mounts, binds nor unmounts: SIGTERM ends it and its daemon, requests
wait for whoever holds the estate, and giving up is its exit with status 1.

The one idea: the keeper holds the connection, so the end of a daemon is not the end of the mount.
The next one is told what the kernel said at first (FUSE_INIT), what it knows of names (the journal)
and what it still waits for (NOTIFY_RESEND). A daemon that does not beat any more is killed and
replaced as well. The keeper is small, without pyfuse3, and holds no file, directory or mapping
inside the mount.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from dataclasses import replace
from typing import Any

import fusefs
from fusefs.engine.machine import name_process
from fusefs.engine.privileges import KEEPER, settle
from fusefs.errors import CannotStart, FusefsError
from fusefs.mount import kernel, renewal
from fusefs.mount.estate import ESTATE_VERSION, Estate
from fusefs.mount.generation import (
    DaemonRefused,
    Generation,
    become_reaper,
    reap_orphans,
    start_generation,
)
from fusefs.mount.holding import Giver, Holding
from fusefs.mount.job import Job, read_job, read_job_dict
from fusefs.mount.signals import Signals, Stopped
from fusefs.mount.vitals import Vitals, map_memory, open_memory
from fusefs.policy.heartbeat import LOOK_S, Heartbeat
from fusefs.policy.restarts import GIVE_UP_S, Restarts
from fusefs.telemetry.log import configure_log

log = logging.getLogger("fusefs.keeper")

CHECK_TIMEOUT_S = 30.0
"""For starting processes and checking the source, which has its own deadline of 10 s; the command
line waits for 45 s."""

KILL_S = 10.0
"""For a process to be gone after SIGKILL; one that waits in the kernel stays."""

DRAIN_S = 5.0
"""For a daemon to answer what it has in hand before the next takes over; what is left then is sent
again to that one. Reads that wait for a slow store are the ones left."""

DRAIN_WITHOUT_RESEND_S = 180.0
"""Where the kernel cannot send again, everything is waited for: reads have a deadline of 120 s."""


class Keeper:
    """One mount's life.

    The mutable state of Keeper is the mount, the daemon that serves it (or served it last), and the
    history of daemons. INVARIANT: at most one daemon has the connection: the next gets it when
    the one before is dead.
    """

    def __init__(
        self,
        job: Job,
        signals: Signals,
        memory_fd: int,
        estate: Estate | None,
        giver: Giver | None = None,
    ) -> None:
        self._job = job
        self._signals = signals
        self._memory_fd = memory_fd
        self._vitals = Vitals(map_memory(memory_fd))
        self._restarts = Restarts(time.monotonic())
        self._heartbeat = Heartbeat()
        self._mount = Holding(job, estate)
        self._giver = giver
        self._generation: Generation | None = None

    def start(self) -> None:
        """Bring the mount up. Raises FusefsError or Stopped; then `stop` cleans up."""
        served_before = bool(self._vitals.note().init_reply)
        self._bring_up(check=not served_before)
        if self._job.owns:
            listener, why = self._mount.prove()
            assert self._generation is not None
            message = {"listener": listener is not None, "why": why}
            self._generation.tell(message, [] if listener is None else [listener])

    def renew(self, predecessor: Generation) -> None:
        """Put a daemon in the place of one that serves. If that fails, the old one goes on."""
        self._generation = predecessor
        self._restarts.serves(time.monotonic())
        try:
            self._bring_up(check=False, predecessor=predecessor)
        except Stopped:
            return  # `wait` does as it was told
        except FusefsError as error:
            renewal.refuse(self._vitals, str(error))
        else:
            note = self._vitals.note()
            self._vitals.write_note(replace(note, upgrades=note.upgrades + 1))

    def wait(self) -> int:
        """Keep the mount until it ends or a signal comes; returns the exit status, all cleaned up.

        Raises Stopped never: a stop is what it waits for.
        """
        table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not self._signals.ask_to_stop:
                if not self._mount.is_connected():
                    status = 1 if self._mount.is_mounted() else 0  # aborted, or unmounted
                    self.stop()
                    return status
                if not self._look_after():
                    self.stop()
                    return 1
                if self._signals.take_upgrade():
                    self._upgrade()
                given = self._giver.sources if self._giver else []
                sources: list[socket.socket | int] = [table, *given]
                self._take_socket(self._signals.wait(sources, time.monotonic() + LOOK_S))
                reap_orphans(self._generation.pid if self._generation else 0)
                self._mount.let_go_if_unmounted()
            self.stop()
            return 0
        finally:
            os.close(table)

    def _take_socket(self, ready: set[int]) -> None:
        """Whoever gave us the mount has bound the hints' socket in it since."""
        given = self._giver.take(ready) if self._giver else None
        if given is not None and self._generation is not None:
            listener, why = self._mount.add_listener(given)
            message = {"listener": listener is not None, "why": why}
            with contextlib.suppress(FusefsError):  # the next daemon gets it with the rest
                self._generation.tell(message, [] if listener is None else [listener])

    def stop(self) -> None:
        """Unmount, let the daemon end, and abort what does not end by itself. Idempotent."""
        self._mount.close_listener("the mount ends")
        generation, was_mounted = self._generation, self._mount.exists
        if generation is not None:
            generation.hang_up()
            if generation.has_ended:
                self._mount.abort()
            elif not self._job.owns:
                generation.ask_to_end()
        self._mount.unmount()
        grace_s = self._job.grace_s if was_mounted else 0.0
        if generation is not None and not generation.wait_ended(grace_s):
            generation.kill()
            generation.wait_ended(KILL_S)
        self._mount.abort()
        self._mount.close()

    # -- daemons ----------------------------------------------------------------------------------

    def _bring_up(
        self, check: bool, predecessor: Generation | None = None, after: str | None = None
    ) -> None:
        """Have a new daemon serve. Raises FusefsError or Stopped, with that one ended.

        It is ready, as far as one can be, before `predecessor` is ended. `after` is what became of
        a daemon that did not end as it should.
        """
        generation = start_generation(self._job.fd, self._memory_fd)
        if self._generation is None:
            self._generation = generation
        try:
            generation.tell({"begin": True, "check": check})
            self._expect(generation, "checked")
            if not self._mount.exists:
                self._mount.open(self._memory_fd)
            generation.tell({"init": self._mount.estate.init_request.hex()})
            self._agree(self._expect(generation, "ready"))
            if predecessor is not None:
                self._drain(predecessor)
            self._hand_over(generation, after)
            self._expect(generation, "serving")
        except (FusefsError, Stopped):
            generation.kill()
            generation.wait_ended(KILL_S)
            generation.hang_up()
            raise
        if self._generation is not generation:
            self._generation.hang_up()
            self._generation = generation
        self._heartbeat.begin(self._vitals.beats(), time.monotonic())
        self._restarts.serves(time.monotonic())

    def _agree(self, init_reply: str) -> None:
        """Answer FUSE_INIT, once; a later daemon must mean the same by it."""
        note = self._vitals.note()
        if note.init_reply and note.init_reply != init_reply:
            raise FusefsError(
                "this fusefs, or its libfuse, speaks with the kernel in another way than the one"
                " that mounted: unmount, and mount anew"
            )
        self._vitals.write_note(replace(note, init_reply=init_reply))
        with contextlib.suppress(FileNotFoundError):  # answered already
            os.write(self._mount.estate.fuse_fd, bytes.fromhex(init_reply))

    def _drain(self, predecessor: Generation) -> None:
        """End a daemon that serves; what it has in hand is answered by it or by the next."""
        predecessor.ask_to_end()
        limit_s = DRAIN_S if self._mount.estate.can_resend else DRAIN_WITHOUT_RESEND_S
        if not predecessor.wait_ended(limit_s):
            predecessor.kill()
            predecessor.wait_ended(KILL_S)
        if not predecessor.has_ended:
            raise FusefsError("the daemon that serves cannot be ended: it waits in the kernel")

    def _hand_over(self, generation: Generation, after: str | None) -> None:
        estate = self._mount.estate
        message = {
            "serve": True,
            "device": estate.device,
            "after": after,
            "resend": estate.can_resend,
            "visible": self._job.owns,
            "listener": estate.listener_fd is not None,
            "why": estate.no_listener,
        }
        listener = [] if estate.listener_fd is None else [estate.listener_fd]
        generation.tell(message, [estate.fuse_fd, *listener])

    def _look_after(self) -> bool:
        """Replace a daemon that ended or hangs; False once that is given up."""
        generation = self._generation
        assert generation is not None
        hangs = self._heartbeat.is_lost(self._vitals.beats(), time.monotonic())
        if hangs and not generation.has_ended:
            generation.kill()
            if not generation.wait_ended(KILL_S):
                log.error("the daemon hangs in the kernel and cannot be killed")
                return not self._restarts.is_hopeless(time.monotonic())
            return self._replace("hung, and was killed")
        return self._replace(generation.describe_end()) if generation.has_ended else True

    def _replace(self, how: str) -> bool:
        """Put another daemon in the place of a dead one; False once that is given up."""
        if not self._mount.is_connected():
            return True  # it ended because it was unmounted
        note = self._vitals.note()
        self._vitals.write_note(replace(note, restarts=note.restarts + 1, last_end=how))
        self._restarts.ended(time.monotonic())
        self._heartbeat.end()
        if not self._can_go_on(how):
            return False
        while self._mount.is_connected():
            if self._restarts.is_hopeless(time.monotonic()):
                log.error("no daemon served for %.0f s; giving up", GIVE_UP_S)
                return False
            try:
                self._pause(self._restarts.pause_s())
                self._bring_up(check=False, after=how)
            except Stopped:
                return True
            except FusefsError as error:
                log.error("a daemon could not take over: %s", error)  # noqa: TRY400 - a sentence
                self._restarts.ended(time.monotonic())
                continue
            return True
        return True  # unmounted meanwhile

    def _can_go_on(self, how: str) -> bool:
        """Whether nothing was lost with the dead daemon, or the next one can find out."""
        estate = self._mount.estate
        if estate.can_resend or kernel.requests_waiting(estate.device) is not None:
            return True
        log.error(
            "the daemon %s; this kernel (before 6.9) does not send its requests again, and whether"
            " it had some cannot be seen without /sys/fs/fuse/connections: the mount ends",
            how,
        )
        return False

    def _expect(self, generation: Generation, word: str) -> Any:
        """Wait until the daemon says `word`; raises what it says instead, or Stopped."""
        until = time.monotonic() + CHECK_TIMEOUT_S
        while generation.channel.fileno() not in self._signals.wait([generation.channel], until):
            if self._signals.ask_to_stop:
                raise Stopped
            if time.monotonic() > until:
                raise FusefsError("the daemon did not answer in time; see the log")
        return generation.hear(word)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._mount.is_connected():
            self._signals.wait([], until)
            if self._signals.ask_to_stop:
                raise Stopped

    def _upgrade(self) -> None:
        """Go on as a new program, with all that is ours; returns only if that was refused."""
        assert self._generation is not None
        try:
            renewal.check_program()
            renewal.become(self._mount.estate, self._job, self._generation, self._signals)
        except FusefsError as error:
            renewal.refuse(self._vitals, str(error))


def main(arguments: list[str]) -> int:
    """Keep one mount, as the module says."""
    if arguments == ["--version"]:
        sys.stdout.write(json.dumps({"estate": ESTATE_VERSION, "version": fusefs.__version__}))
        return 0
    name_process("fusefs-keeper")
    settle(KEEPER)
    become_reaper()
    signals = Signals()
    signals.watch()
    if arguments[0] == renewal.FLAG:
        return _go_on(arguments[1:], signals)
    adopts = arguments[0] == "--adopt"
    *estate_fd, job_fd, report_fd = (int(argument) for argument in arguments[adopts:])
    for fd in (*estate_fd, job_fd, report_fd):
        os.set_inheritable(fd, False)  # a daemon that held the report's pipe would hide our end
    _configure_log(job_fd)
    estate, giver = None, None
    try:
        if adopts:
            giver = Giver(socket.socket(fileno=estate_fd[0]))
            estate = giver.receive()
        memory_fd = estate.memory_fd if estate else open_memory()
        keeper = Keeper(read_job(job_fd, not adopts), signals, memory_fd, estate, giver)
        report = _start(keeper)
    except FusefsError as error:
        report = {"ok": False, "status": 1, "message": str(error)}
    with contextlib.suppress(BrokenPipeError), open(report_fd, "w") as pipe:
        pipe.write(json.dumps(report) + "\n")  # whoever started us may be gone
    return keeper.wait() if report["ok"] else report["status"]


def _start(keeper: Keeper) -> dict[str, Any]:
    """Bring the mount up, and say so; or why not, with all cleaned up."""
    try:
        keeper.start()
    except FusefsError as error:
        keeper.stop()
        report = {"ok": False, "status": 1, "message": str(error)}
        if isinstance(error, DaemonRefused):
            report |= {"status": error.status, "class": error.kind}
        return report
    except OSError as error:  # a limit of processes or of open files
        keeper.stop()
        refused = CannotStart(os.strerror(error.errno or 0))
        return {"ok": False, "status": 1, "message": str(refused)}
    except Stopped:
        keeper.stop()
        return {"ok": False, "status": 1, "message": "stopped before it was mounted"}
    return {"ok": True, "pid": os.getpid()}


def _go_on(arguments: list[str], signals: Signals) -> int:
    """Be the keeper that another program was before us."""
    estate, job, predecessor = renewal.take(arguments)
    _configure_log(job.fd)
    keeper = Keeper(job, signals, estate.memory_fd, estate)
    keeper.renew(predecessor)
    return keeper.wait()


def _configure_log(job_fd: int) -> None:
    job = read_job_dict(job_fd)
    config = job["config"]["log"]
    configure_log(config["level"], config["file"], job["foreground"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
