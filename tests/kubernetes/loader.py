"""An application that loads a file in two halves, the second when it is told to, by read and mmap.

A process of its own: a read that waits for a daemon can be ended by nobody but its answer, and the
test has to go on meanwhile.
"""

from __future__ import annotations

import hashlib
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

END_TIMEOUT_S = 90.0
"""A mounter that was killed is started again, and its daemons: seconds on a busy machine."""

PROGRAM = """
import hashlib, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ)
half = size // 2 // mmap.PAGESIZE * mmap.PAGESIZE
digest = hashlib.sha256()

def load(start, stop):
    # Turn by turn through read(2) and through the mapping, a MiB at a time.
    for at in range(start, stop, 1 << 20):
        end = min(stop, at + (1 << 20))
        digest.update(os.pread(fd, end - at, at) if at >> 20 & 1 else mapping[at:end])

load(0, half)
print("half", flush=True)
sys.stdin.readline()
load(half, size)
print(digest.hexdigest(), flush=True)
"""


class Loader:
    """One load. `half` waits for the first half, `finish` has it do the rest."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def half(self) -> None:
        """Wait until the first half is in."""
        assert self._line() == "half"

    def go_on(self) -> None:
        """Let it load the rest."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self, content: bytes) -> None:
        """Wait for its end: every byte was right, and nothing failed."""
        assert self._line() == hashlib.sha256(content).hexdigest()
        assert self._process.wait(END_TIMEOUT_S) == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], END_TIMEOUT_S)
        assert ready, "the load hangs"
        return self._process.stdout.readline().strip()


@contextmanager
def open_loader(path: str) -> Iterator[Loader]:
    """Start to load the file at `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Loader(process)
        finally:
            process.kill()
