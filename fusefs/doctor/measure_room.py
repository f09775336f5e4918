"""A child of the doctor: how full are the file systems of these paths? JSON on standard output.

A child, since a path may lie on a file system that hangs as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys


def main(paths: list[str]) -> None:
    """Write a line for each path that is there."""
    for path in paths:
        with contextlib.suppress(OSError):
            found = os.statvfs(path)
            size, free = (blocks * found.f_frsize for blocks in (found.f_blocks, found.f_bavail))
            row = {"path": path, "size_bytes": size, "free_bytes": free}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
