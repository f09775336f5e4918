"""Which part of the mount a peer can see, by its own mount table.

A container may have been given one directory of the mount; the socket answers there too, and inode
numbers can be guessed by who knows names and etags. What a peer cannot reach with open(2), hints
tell it nothing of.
"""

from __future__ import annotations

import re
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


def visible_roots(pid: int, device: str, proc: Path = Path("/proc")) -> list[str] | None:
    """The directories of the mount `device` ("major:minor") that process `pid` has mounted.

    "/" is the whole mount. None if it cannot be known: the process has gone, or is of another pid
    namespace (pid 0).
    """
    if pid <= 0:
        return None
    try:
        text = (proc / str(pid) / "mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return None
    rows = [line.split(" ", 5) for line in text.splitlines()]
    return [
        _OCTAL.sub(lambda match: chr(int(match[1], 8)), row[3]) for row in rows if row[2] == device
    ]


def is_visible(path: str, roots: list[str]) -> bool:
    """Whether `path`, relative to the mount's root and without a leading slash, is below one."""
    return any(root == "/" or f"/{path}/".startswith(f"{root}/") for root in roots)
