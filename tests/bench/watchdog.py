"""A process of its own that frees whoever waits for a hung mount: `… watchdog MOUNTPOINT LIMIT_S`.

Reads its standard input. The line "done" lets it go; the end of the input (the bench died) or the
limit makes it abort the mount's connection, which fails every waiting request, and unmount lazily.
It never touches the mount itself. Standard library only, so that it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")
UMOUNT_LIMIT_S = 10.0


def connection_of(mountpoint: str) -> int | None:
    """Return the number of the FUSE connection mounted at `mountpoint`, None if there is none.

    From mountinfo: a stat of the mount point would wait for the daemon.
    """
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        # proc(5): 3rd field major:minor, 5th the mount point with octal escapes (ours need none).
        if fields[4] == mountpoint:
            found = int(fields[2].partition(":")[2])
    return found


def show_connections() -> None:
    """Mount fusectl if it is not: a container often lacks it. Root only; others go without."""
    if not any(CONNECTIONS.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "none", str(CONNECTIONS)], check=False)


def abort(mountpoint: str) -> None:
    """Abort the connection behind `mountpoint` and take the mount away, if there is one."""
    number = connection_of(mountpoint)
    if number is None:
        return
    show_connections()
    with contextlib.suppress(OSError):
        (CONNECTIONS / str(number) / "abort").write_text("1")
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=UMOUNT_LIMIT_S)


def main() -> None:
    """Wait for "done", the end of the input, or the limit."""
    mountpoint, limit_s = sys.argv[1], float(sys.argv[2])
    if select.select([sys.stdin], [], [], limit_s)[0] and os.read(0, 16).startswith(b"done"):
        return
    abort(mountpoint)


if __name__ == "__main__":
    main()
