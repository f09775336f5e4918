"""A child of the doctor: who uses the mount of a device ("major:minor")? A JSON line for each.

Looks only at what /proc says, across mount namespaces, and never follows a link. Mappings come
last: to list those of a process may have to wait for a page that the sick mount owes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fusefs.doctor.evidence import NAMESPACE
from fusefs.mount.kernel import device_mounts

_told = {os.readlink("/proc/self/ns/mnt")}
"""Namespaces that were told already; our own is no news."""

FOUND_MAX = 100
"""Users told: of a crowd the first are enough."""


def main(device: str) -> None:
    """Write a line for each process, as it is found."""
    seen: set[int] = set()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for look in (_handles, _mappings, _namespaces):
        for pid in pids:
            if pid in seen or len(seen) >= FOUND_MAX:
                continue
            with contextlib.suppress(OSError):  # it ended, or is none of our business
                for how in look(pid, device):
                    seen.add(pid)
                    _tell(pid, how)
                    break


def _tell(pid: int, how: str) -> None:
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    user = {"pid": pid, "name": name, "state": rest.split()[0], "how": how}
    sys.stdout.write(json.dumps(user) + "\n")
    sys.stdout.flush()


def _handles(pid: int, device: str) -> Iterator[str]:
    """Open files, by the mount that each descriptor came through; and the working directory."""
    mounts = device_mounts(Path(f"/proc/{pid}/mountinfo"), device)
    if not mounts:
        return
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(OSError):  # closed meanwhile
            for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines():
                if line.startswith("mnt_id:") and int(line.split()[1]) in mounts:
                    yield "open file"
    for link, how in (("cwd", "working directory"), ("root", "root directory")):
        place = os.readlink(f"/proc/{pid}/{link}")
        if any(place == at or place.startswith(f"{at}/") for at in mounts.values()):
            yield how


def _namespaces(pid: int, device: str) -> Iterator[str]:
    """Other mount namespaces: a copy of the mount in one keeps it alive when ours is gone."""
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    if namespace not in _told and device_mounts(Path(f"/proc/{pid}/mountinfo"), device):
        _told.add(namespace)
        yield NAMESPACE


def _mappings(pid: int, device: str) -> Iterator[str]:
    major, minor = (int(part) for part in device.split(":"))
    wanted = f" {major:02x}:{minor:02x} "
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
        for line in maps:
            if wanted in line:
                yield "mapped file"


if __name__ == "__main__":
    main(sys.argv[1])
