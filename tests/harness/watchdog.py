"""Frees whoever hangs on a mount that no longer answers; itself touches no file of the mount.

A reader of a dead FUSE mount sleeps in the kernel where no signal reaches it, so neither pytest's
timeout nor Ctrl-C ends it. Aborting the FUSE connection does: each waiting call fails at once. The
one idea: this runs in a session of its own and reads a pipe. A line on it means all went well; its
end means that the test process died; nothing within the limit means that it hangs.

    python -m tests.harness.watchdog MOUNTPOINT LIMIT_S MARKER
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness.memory import marked_pids

_MNT_DETACH = 2  # <sys/mount.h>


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo, as far as it matters here."""

    device: str
    fstype: str
    source: str


def find_mount(path: Path) -> MountEntry | None:
    """Return what is mounted on top at `path`, without a stat on it: a dead mount would hang."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        # Blanks and the like are octal escapes in mountinfo (proc(5)).
        mountpoint = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if mountpoint == str(path):
            found = MountEntry(fields[2], tail[0], tail[1])
    return found


def tear_down(path: Path, marker: str) -> None:
    """Kill the group `marker`, abort the connection of the mount at `path` and detach it.

    Again until nothing is left: a process killed while it mounts may have mounted meanwhile. A
    mount that was detached already is told by its waiting requests.
    """
    while True:
        pids = [pid for pid in marked_pids(marker) if pid != os.getpid()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        entry = find_mount(path)
        if entry is not None:
            _detach(path, entry)
        elif not pids:
            return
        elif any(_is_stuck(pid) for pid in pids):
            _abort_detached()
        time.sleep(0.01)


def _is_stuck(pid: int) -> bool:
    """Whether a process that was killed waits where no signal reaches it."""
    with contextlib.suppress(OSError):
        states = [t.read_text() for t in Path(f"/proc/{pid}/task").glob("*/stat")]
        return any(state.rpartition(")")[2].split()[0] == "D" for state in states)
    return False


def _abort_detached() -> None:
    """Abort connections with waiting requests that no process sees mounted any more.

    Only a mount that was detached while it hung looks like that.
    """
    mounted: set[str] = set()
    for mountinfo in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it ended while we looked
            mounted.update(row.split()[2] for row in mountinfo.read_text().splitlines())
    for connection in Path("/sys/fs/fuse/connections").iterdir():
        with contextlib.suppress(OSError):
            waits = (connection / "waiting").read_text().strip() != "0"
            if waits and f"0:{connection.name}" not in mounted:
                (connection / "abort").write_text("1")


def _detach(path: Path, entry: MountEntry) -> None:
    if entry.fstype.startswith("fuse"):
        minor = entry.device.partition(":")[2]
        with contextlib.suppress(OSError):  # The last process's end has aborted it already.
            Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
    if ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH) != 0:
        subprocess.run(["fusermount3", "-u", "-z", str(path)], check=False)


def main(mountpoint: str, limit_s: str, marker: str) -> int:
    """Wait for a line, the end of the pipe, or the limit. Returns 0 if nothing had to be done."""
    ready, _, _ = select.select([sys.stdin], [], [], float(limit_s))
    if ready and os.read(sys.stdin.fileno(), 1):
        return 0
    tear_down(Path(mountpoint), marker)
    if ready:  # Nobody else is left to do it.
        Path(mountpoint).rmdir()
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
