"""The processes of a mount, found by what /proc says, since a sick daemon cannot be asked.

The one idea: keeper and daemon hold the job that the mount was started with, which names its
mountpoint, and the connection's number stands beside a descriptor of /dev/fuse; the others are
their children. Only links and kernel files are read: nothing here can wait for the mount.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusefs.doctor.evidence import DAEMON, KEEPER, Process
from fusefs.mount.kernel import MountRow, device_mounts

_PREFIX = "fusefs-"
_JOB = "/memfd:fusefs-job"
_DEVICE = "/dev/fuse"
_STACK_LINES = 4
"""Of the kernel's stack: enough to tell a lock from a request."""


@dataclass(frozen=True, slots=True)
class Found:
    """Processes of one mount, and the job it was started with if it could be read.

    `hidden` is how many processes of some mount we may not look into; `device` is the connection's
    that they serve, "" if that is not known.
    """

    processes: tuple[Process, ...]
    job: dict[str, Any] | None
    hidden: int
    device: str = ""


@dataclass(slots=True)
class _Candidate:
    """A process that is called like one of ours, and what it holds."""

    process: Process
    job: dict[str, Any] | None = None
    connections: frozenset[str] = frozenset()
    is_hidden: bool = False


def find_processes(mountpoint: str, row: MountRow | None, proc: Path = Path("/proc")) -> Found:
    """All processes of the mount `row`, or of what was mounted there if nothing is any more."""
    candidates = list(_candidates(proc))
    heads = [each for each in candidates if _serves(each, mountpoint, row, proc)]
    ours = {each.process.pid for each in heads}
    while True:  # children, and children's children
        more = {c.process.pid for c in candidates if c.process.parent in ours} - ours
        if not more:
            break
        ours |= more
    processes = tuple(each.process for each in candidates if each.process.pid in ours)
    hidden = sum(each.is_hidden and each.process.pid not in ours for each in candidates)
    numbers = [number for each in heads for number in each.connections]
    device = f"0:{numbers[0]}" if numbers else ""
    return Found(processes, next((each.job for each in heads if each.job), None), hidden, device)


def _candidates(proc: Path) -> Iterator[_Candidate]:
    for name in os.listdir(proc):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                comm = (proc / name / "comm").read_text().strip()
                if comm.startswith(_PREFIX):
                    yield _candidate(proc / name, comm.removeprefix(_PREFIX))


def _candidate(directory: Path, role: str) -> _Candidate:
    process = _process(directory, role)
    candidate = _Candidate(process)
    try:
        links = {
            name: os.readlink(directory / "fd" / name) for name in os.listdir(directory / "fd")
        }
    except OSError:
        candidate.is_hidden = process.state != "Z"  # a zombie holds nothing any more
        return candidate
    numbers = set()
    for name, link in links.items():
        with contextlib.suppress(OSError, ValueError):
            if link.startswith(_JOB):
                candidate.job = json.loads((directory / "fd" / name).read_bytes())
            elif link == _DEVICE:
                numbers.add(_connection(directory / "fdinfo" / name))
    candidate.connections = frozenset(number for number in numbers if number)
    return candidate


def _connection(fdinfo: Path) -> str:
    """The connection's number behind a descriptor of /dev/fuse; "" before Linux 6.16."""
    for line in fdinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "fuse_connection":
            return value.strip()
    return ""


def _serves(each: _Candidate, mountpoint: str, row: MountRow | None, proc: Path) -> bool:
    """Whether this one belongs to the mount: by its connection, else by its job.

    The job's mountpoint is a path of the mount namespace that the keeper lives in.
    """
    if row is not None and each.connections:
        return row.device.partition(":")[2] in each.connections
    if each.job is None or each.process.role not in (KEEPER, DAEMON):
        return False
    theirs = each.job.get("mountpoint")
    if row is not None:
        table = proc / str(each.process.pid) / "mountinfo"
        with contextlib.suppress(OSError):
            return theirs in device_mounts(table, row.device).values()
    return theirs == mountpoint


def _process(directory: Path, role: str) -> Process:
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    state = fields[0]
    stack: tuple[str, ...] = ()
    for task in (directory / "task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "stat").read_text().rpartition(")")[2].split()[0] == "D":
                state, stack = "D", _stack(task)
    return Process(
        role,
        int(directory.name),
        int(fields[1]),
        state,
        _identity(directory, "Uid:"),
        _identity(directory, "Gid:"),
        _text(directory / "wchan"),
        stack,
        _count(directory / "fd"),
        _descriptors_max(directory),
    )


def _stack(task: Path) -> tuple[str, ...]:
    lines = (_text(task / "stack") or "").splitlines()
    return tuple(line.partition("] ")[2] for line in lines[:_STACK_LINES])


def _identity(directory: Path, name: str) -> int | None:
    """The effective user or group. Not the owner of the folder below /proc, which may be root."""
    for line in (_text(directory / "status") or "").splitlines():
        if line.startswith(name):
            return int(line.split()[2])
    return None


def _descriptors_max(directory: Path) -> int | None:
    for line in (_text(directory / "limits") or "").splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else None
    return None


def _count(directory: Path) -> int | None:
    try:
        return len(os.listdir(directory))
    except OSError:
        return None


def _text(file: Path) -> str | None:
    """What it says; None if we may not know."""
    try:
        return file.read_text().strip() or None
    except OSError:
        return None
