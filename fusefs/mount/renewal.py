"""`fusefs upgrade`: the keeper goes on as a new program, with all that is its own.

The one idea: the process stays and its program is exchanged (exec), so that pid, parent, children
and exit status are what they were. What it holds passes over in a socket, as an estate does
between any two keepers. Nothing here starts or ends a daemon.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from fusefs.errors import FusefsError
from fusefs.mount.estate import ESTATE_VERSION, Estate
from fusefs.mount.generation import Generation
from fusefs.mount.job import Job, read_job
from fusefs.mount.signals import Signals
from fusefs.mount.vitals import Vitals

FLAG = "--renew"
"""ESTATE_FD JOB_FD DAEMON_PID DAEMON_CHANNEL_FD OWNS: how a keeper calls its next self."""

KEEPER = (sys.executable, "-m", "fusefs.mount.keeper")

CHECK_TIMEOUT_S = 30.0
"""For a Python to start on a busy machine and import what a keeper needs."""


def check_program() -> None:
    """Make sure that the program on disk would understand us. Raises FusefsError if not."""
    try:
        done = subprocess.run(
            [*KEEPER, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
        answer = json.loads(done.stdout)
        version, estate = str(answer["version"]), int(answer["estate"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise FusefsError(
            "the fusefs that is installed does not start; the mount goes on with the old one"
        ) from error
    if estate != ESTATE_VERSION:
        raise FusefsError(
            f"fusefs {version} cannot take this mount over (its estate is of version {estate}, ours"
            f" of version {ESTATE_VERSION}): the mount goes on with the old one; unmount, and mount"
            " anew, for the new one"
        )


def become(estate: Estate, job: Job, generation: Generation, signals: Signals) -> None:
    """Go on as the program on disk; returns never. Raises FusefsError if that cannot be."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        estate.send(ours)
        fds = theirs.fileno(), job.fd, generation.channel.fileno()
        numbers = fds[0], fds[1], generation.pid, fds[2], job.owns
        signals.block()
        try:
            for fd in fds:
                os.set_inheritable(fd, True)
            program = [*KEEPER, FLAG, *(str(int(number)) for number in numbers)]
            os.execv(program[0], program)  # noqa: S606 - there is no shell to start it with
        except OSError as error:
            for fd in fds:
                os.set_inheritable(fd, False)
            signals.watch()
            raise FusefsError(f"cannot start {KEEPER[0]}: {error.strerror}") from error


def take(arguments: Sequence[str]) -> tuple[Estate, Job, Generation]:
    """What `become` passed on, for the program that it became. Raises FusefsError."""
    estate_fd, job_fd, pid, channel_fd, owns = map(int, arguments)
    for fd in (job_fd, channel_fd):
        os.set_inheritable(fd, False)
    with socket.socket(fileno=estate_fd) as channel:
        estate = Estate.receive(channel)
    generation = Generation(pid, socket.socket(fileno=channel_fd))
    return estate, read_job(job_fd, bool(owns)), generation


def refuse(vitals: Vitals, why: str) -> None:
    """Leave word of an upgrade that was not; `fusefs upgrade` looks for it in the status."""
    note = vitals.note()
    vitals.write_note(replace(note, refused=note.refused + 1, why_refused=why))
