"""Asking a running mount, from outside and without ever hanging on it.

The one idea: a mount whose daemon is stuck blocks whoever touches it, and no signal helps. So a
child does the touching, and is left behind if it does not come back in time. There are no pid or
socket files: the mount itself is asked, by getxattr.
"""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATS_NAME = "user.fusefs.stats"

ANSWER_TIMEOUT_S = 5.0
"""The daemon answers from memory, in milliseconds; the rest is for a busy machine."""

_GIVE_UP_S = 1.0
"""For a killed child to go. One that hangs in the kernel does not, and is not waited for."""

_CHILD = """
import os, sys
try:
    sys.stdout.buffer.write(os.getxattr(sys.argv[1], sys.argv[2]))
except OSError as error:
    sys.exit(error.errno % 256)
"""

_LISTING_CHILD = """
import os, sys
try:
    with os.scandir(sys.argv[1]) as names:
        next(names, None)
except OSError as error:
    sys.exit(error.errno % 256)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a mount said of itself. Without `stats`, `trouble` says why, to follow its name.

    `dead` tells that its daemon is gone and that nothing but unmounting helps; `silent`, that it
    was asked in vain.
    """

    stats: dict[str, Any] | None
    trouble: str | None = None
    dead: bool = False
    silent: bool = False


def ask_mount(mountpoint: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
    """Ask one mount for its statistics."""
    return ask_mounts([mountpoint], timeout_s)[0]


def ask_mounts(mountpoints: Sequence[str], timeout_s: float = ANSWER_TIMEOUT_S) -> list[Answer]:
    """Ask several mounts at once: all that do not answer cost `timeout_s` together."""
    until = time.monotonic() + timeout_s
    children = [_start_child(_CHILD, mountpoint, STATS_NAME) for mountpoint in mountpoints]
    return [_collect(child, until) for child in children]


def ask_names(mountpoint: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str | None:
    """What keeps a mount from listing its folder, to follow its name; None if it does list it."""
    child = _start_child(_LISTING_CHILD, mountpoint)
    if isinstance(child, OSError):
        return _cannot_ask(child)
    if _communicate(child, time.monotonic() + timeout_s) is None:
        return "does not list its files in time: its store may be out of reach"
    if child.returncode != 0:
        return f"cannot list its files ({_reason(child.returncode)})"
    return None


def _cannot_ask(error: OSError) -> str:
    return f"cannot be asked: no process can be started ({error.strerror})"


def _start_child(program: str, *arguments: str) -> subprocess.Popen[bytes] | OSError:
    try:
        return _popen(program, *arguments)
    except OSError as error:  # a limit of processes or of open files: that too is an answer
        return error


def _popen(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )


def _communicate(child: subprocess.Popen[bytes], until: float) -> bytes | None:
    """What the child wrote, with its `returncode` set; None if it did not end in time."""
    try:
        data, _ = child.communicate(timeout=max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            child.communicate(timeout=_GIVE_UP_S)
        except subprocess.TimeoutExpired:
            child.returncode = -1  # stuck in the kernel: it ends when the mount does
        return None
    return data


def _reason(returncode: int) -> str:
    return os.strerror(returncode) if returncode > 0 else "killed"


def _collect(child: subprocess.Popen[bytes] | OSError, until: float) -> Answer:
    if isinstance(child, OSError):
        return Answer(None, _cannot_ask(child))
    data = _communicate(child, until)
    if data is None:
        return Answer(None, "does not answer", silent=True)
    if child.returncode == errno.ENOTCONN:
        return Answer(None, "has lost its daemon (transport endpoint is not connected)", dead=True)
    if child.returncode != 0:
        return Answer(None, f"gives no statistics ({_reason(child.returncode)})")
    try:
        stats = json.loads(data)
    except ValueError:
        stats = None
    if not isinstance(stats, dict):
        return Answer(None, "gives statistics that cannot be read")
    return Answer(stats)


def process_ids(stats: dict[str, Any]) -> list[int]:
    """All processes of a mount, from its statistics."""
    pids = stats.get("pids", {})
    single = [pids.get(name) for name in ("keeper", "daemon", "spawner", "pusher")]
    return [pid for pid in [*single, *pids.get("workers", [])] if isinstance(pid, int) and pid > 0]


@contextmanager
def open_processes(pids: Iterable[int]) -> Iterator[list[int]]:
    """Pidfds of those `pids` that live and are ours.

    A pidfd stays with its process, so a number that is used again confuses nobody. The command line
    is compared because the statistics of a mount in another pid namespace speak of other numbers.
    """
    with ExitStack() as stack:
        fds = []
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue  # ended already
            stack.callback(os.close, fd)
            if _is_ours(pid):
                fds.append(fd)
        yield fds


def wait_ended(pidfds: Iterable[int], timeout_s: float) -> bool:
    """Wait until all these processes have ended; false if some still run after `timeout_s`."""
    until = time.monotonic() + timeout_s
    running = set(pidfds)
    poll = select.poll()
    for fd in running:
        poll.register(fd, select.POLLIN)
    while running:
        ended = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not ended:
            return False
        for fd, _ in ended:
            poll.unregister(fd)
            running.discard(fd)
    return True


def _is_ours(pid: int) -> bool:
    try:
        return b"fusefs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
