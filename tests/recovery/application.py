"""An application that does what it is told on files it holds open, each thing in a thread.

    python -m tests.recovery.application MOUNT PLAIN

Lines on standard input are `LABEL KIND ARGUMENT`; for each, one line `LABEL RESULT` comes when it
is done: "exact", "wrong", or the name of an errno. A process of its own, since whoever waits for a
page fault holds the interpreter's lock, so that it has one process for each fault as well.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
BIG = "big.bin"


class Application:
    """Files held open on a mount, and the same of the plain directory."""

    def __init__(self, mount: Path, plain: Path) -> None:
        self._mount, self._plain = mount, plain
        self._ours = os.open(mount / BIG, os.O_RDONLY)
        self._direct = os.open(mount / BIG, os.O_RDONLY | os.O_DIRECT)
        self._want = (plain / BIG).read_bytes()
        self._mapped = mmap.mmap(self._ours, 0, prot=mmap.PROT_READ)

    def read(self, mebibyte: str) -> bool:
        """A page of the open file."""
        at = int(mebibyte) * MIB
        return os.pread(self._ours, PAGE, at) == self._want[at : at + PAGE]

    def direct(self, mebibyte: str) -> bool:
        """A page past the page cache."""
        at, buffer = int(mebibyte) * MIB, mmap.mmap(-1, PAGE)
        got = os.preadv(self._direct, [buffer], at)
        return buffer[:got] == self._want[at : at + PAGE]

    def fault(self, mebibyte: str) -> bool:
        """A page of the mapping, touched by a child."""
        at = int(mebibyte) * MIB
        pid = os.fork()
        if pid == 0:
            os._exit(self._mapped[at : at + PAGE] != self._want[at : at + PAGE])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def stat(self, name: str) -> bool:
        """What a name shows."""
        ours, theirs = (self._mount / name).stat(), (self._plain / name).stat()
        return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)

    def fstat(self, _: str) -> bool:
        """What the open file shows."""
        return os.fstat(self._ours).st_size == len(self._want)

    def list(self, name: str) -> bool:
        """What a folder shows."""
        return sorted(os.listdir(self._mount / name)) == sorted(os.listdir(self._plain / name))

    def open(self, name: str) -> bool:
        """Open, read, close."""
        return (self._mount / name).read_bytes() == (self._plain / name).read_bytes()

    def do(self, label: str, kind: str, argument: str) -> None:
        """One line."""
        kinds: dict[str, Callable[[str], bool]] = {
            "read": self.read, "direct": self.direct, "fault": self.fault, "stat": self.stat,
            "fstat": self.fstat, "list": self.list, "open": self.open,
        }  # fmt: skip
        try:
            result = "exact" if kinds[kind](argument) else "wrong"
        except OSError as error:
            result = errno.errorcode[error.errno or 0]
        os.write(1, f"{label} {result}\n".encode())


def main(mount: str, plain: str) -> None:
    """Until standard input ends."""
    application = Application(Path(mount), Path(plain))
    os.write(1, b"ready\n")
    for line in sys.stdin:
        threading.Thread(target=application.do, args=line.split(), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
