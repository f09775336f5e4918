"""Gathering the evidence about one mountpoint, in bounded time, whatever hangs.

Touches nothing below the mountpoint. The one idea: everything that may wait is asked at once, each
by a child, and the slowest of them bounds the whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import fusefs
from fusefs.client import ask_mount
from fusefs.doctor.children import Circumstances, collect, start_child
from fusefs.doctor.evidence import (
    DAEMON,
    KEEPER,
    SHARED_MEMORY,
    Connection,
    Evidence,
    Room,
    StoreAnswer,
    User,
)
from fusefs.doctor.processes import Found, find_processes
from fusefs.engine.machine import MemoryLevel, memory_levels
from fusefs.mount.kernel import FSTYPE, MountRow, find_mount

STORE_TIMEOUT_S = 15.0
"""An SDK takes a second or two to import, a connection 5 s to fail; `fusefs mount` waits for 10."""

LOOK_TIMEOUT_S = 10.0
"""For a walk through /proc: a second on a machine with thousands of processes."""


def examine(mountpoint: str) -> Evidence:
    """What can be found about this absolute path, which `resolve_mountpoint` gave."""
    row = find_mount(mountpoint)
    ours = row is None or row.fstype == FSTYPE
    found = find_processes(mountpoint, row) if ours else Found((), None, 0)
    began = time.monotonic()
    if row is None or not ours:
        users = None
        if found.device:  # detached, and still held
            child = start_child("fusefs.doctor.find_users", [found.device], b"")
            users = _users(child, began + LOOK_TIMEOUT_S)
        return Evidence(
            mountpoint,
            row,
            processes=found.processes,
            users=users,
            own_version=fusefs.__version__,
        )
    store = _ask_store(found)
    user_child = start_child("fusefs.doctor.find_users", [row.device], b"")
    rooms = start_child("fusefs.doctor.measure_room", _places(found.job), b"")
    answer = ask_mount(mountpoint)
    return Evidence(
        mountpoint,
        row,
        answer,
        _connection(row),
        found.processes,
        found.hidden,
        _users(user_child, began + LOOK_TIMEOUT_S),
        _store_answer(store, began + STORE_TIMEOUT_S),
        _memory(found),
        tuple(Room(**each) for each in _lines(rooms, began + LOOK_TIMEOUT_S)),
        fusefs.__version__,
    )


def _ask_store(found: Found) -> subprocess.Popen[bytes] | None:
    """Start to ask the store as the mount would: its settings, its environment, its user.

    Its user: what an environment says (a program that hands out credentials, a library to load) is
    done with that user's rights, not with those of a root who wants to know.
    """
    served = [process for process in found.processes if process.role in (DAEMON, KEEPER)]
    for process in sorted(served, key=lambda process: process.role == KEEPER):
        try:
            text = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if found.job is None or process.uid is None or not text:  # a zombie's is empty
            continue
        pairs = (pair.partition(b"=") for pair in text.split(b"\0") if b"=" in pair)
        environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        is_other = process.uid != os.geteuid()
        circumstances = Circumstances(
            environment,
            process.uid if is_other else None,
            process.gid if is_other else None,
        )
        asked = {"source": found.job["source"], "config": found.job["config"]}
        question = json.dumps(asked).encode()
        with contextlib.suppress(OSError):  # that user may not run this Python
            return start_child("fusefs.doctor.ask_store", [], question, circumstances)
    return None


def _store_answer(child: subprocess.Popen[bytes] | None, until_s: float) -> StoreAnswer | None:
    if child is None:
        return None
    outcome = collect(child, until_s)
    if not outcome.in_time:
        return StoreAnswer(f"no answer within {STORE_TIMEOUT_S:.0f} s", STORE_TIMEOUT_S)
    with contextlib.suppress(ValueError, KeyError):
        said = json.loads(outcome.output)
        return StoreAnswer(said["error"], said["seconds"])
    return None  # the child could not even start as that user


def _users(child: subprocess.Popen[bytes], until_s: float) -> tuple[User, ...]:
    return tuple(User(**each) for each in _lines(child, until_s))


def _lines(child: subprocess.Popen[bytes], until_s: float) -> list[dict[str, Any]]:
    """The JSON lines a child wrote; the last may be cut off where its time was up."""
    found = []
    for line in collect(child, until_s).output.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _places(job: dict[str, Any] | None) -> list[str]:
    """Paths whose file systems matter: shared memory, and the log's."""
    log = job["config"].get("log", {}).get("file") if job is not None else None
    return [SHARED_MEMORY, *([str(log)] if log else [])]


def _connection(row: MountRow) -> Connection:
    number = row.device.partition(":")[2]
    directory = Path("/sys/fs/fuse/connections") / number
    return Connection(
        number,
        _number(directory / "waiting"),
        _number(directory / "max_background"),
        _number(Path("/sys/class/bdi") / row.device / "read_ahead_kb"),
    )


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _memory(found: Found) -> tuple[MemoryLevel, ...]:
    for process in found.processes:
        if process.role in (DAEMON, KEEPER):
            with contextlib.suppress(OSError):
                return tuple(memory_levels(process.pid))
    return ()
