"""Many threads that each read across one border of blocks, when told to: a process of its own.

    python -m tests.mounts.crowd FILE PLAIN FIRST STOP

Reads the first MiBs of FILE in order, so that prefetch begins, says "ready", and waits for a line.
Then one thread for each block from FIRST to STOP reads the two pages around that block's begin.
It ends with one JSON list: for each thread "exact", "short" (one page, and then an error), "wrong",
or an errno. A process of its own,
because readers that wait in the kernel cannot be killed, and whoever holds a file of a mount that
does not answer cannot even fork.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20
HEAD_MIB = 12
"""A reader in order for long enough that a window of many blocks lies ahead of it."""

PAGE = 4096


def main(path: str, plain: str, first: str, stop: str) -> None:
    """Read as said above."""
    fd, same = os.open(path, os.O_RDONLY), os.open(plain, os.O_RDONLY)
    for block in range(HEAD_MIB):
        os.pread(fd, MIB, block * MIB)
    print("ready", flush=True)
    sys.stdin.readline()

    def read(block: int) -> str | int:
        at = block * MIB - PAGE
        try:
            got = os.pread(fd, 2 * PAGE, at)
        except OSError as error:
            return error.errno or -1
        want = os.pread(same, 2 * PAGE, at)
        if got != want[: len(got)]:
            return "wrong"
        return "exact" if len(got) == len(want) else "short"

    blocks = range(int(first), int(stop))
    with ThreadPoolExecutor(len(blocks)) as pool:
        print(json.dumps(list(pool.map(read, blocks))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
