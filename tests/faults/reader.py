"""One process that loads a model, and says of every file what became of it.

    python -m tests.faults.reader WAY FOLDER WANTED PULSE

WAY is read, mmap, safetensors or names; WANTED the JSON of `Model.wanted`. A line of JSON for each
file: its name, and "exact", "wrong" or the name of an errno. PULSE is a file in which whoever
watches sees since when the present access lasts and how long the longest took: also of one that
never returned, or ended the process (SIGBUS).
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PIECE = 256 << 10
ERRORS_MAX = 2
"""A loader gives up sooner; the second one shows whether each has its own deadline."""

PULSE = struct.Struct("<dd")
"""Since when the present access lasts (monotonic; 0: none is under way), and the longest one."""


class Pulse:
    """The file's two numbers, written by the reader."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), PULSE.size)
        self._longest_s = 0.0

    @contextmanager
    def access(self) -> Iterator[None]:
        """Around each access."""
        began_s = time.monotonic()
        self._memory[:] = PULSE.pack(began_s, self._longest_s)
        try:
            yield
        finally:
            self._longest_s = max(self._longest_s, time.monotonic() - began_s)
            self._memory[:] = PULSE.pack(0.0, self._longest_s)


def longest_s(path: Path, ended_s: float) -> float:
    """The longest access of a reader that ended then."""
    began_s, longest = map(float, PULSE.unpack(path.read_bytes()))
    return max(longest, ended_s - began_s if began_s else 0.0)


def by_read(path: Path, wanted: dict[str, str], pulse: Pulse) -> bool:
    """Read a file in pieces; whether it is what was wanted."""
    digest = hashlib.sha256()
    with pulse.access():
        fd = os.open(path, os.O_RDONLY)
    try:
        while True:
            with pulse.access():
                data = os.read(fd, PIECE)
            if not data:
                return digest.hexdigest() == wanted[""]
            digest.update(data)
    finally:
        os.close(fd)


def by_mmap(path: Path, wanted: dict[str, str], pulse: Pulse) -> bool:
    """Copy a file out of a mapping; whether it is what was wanted."""
    digest = hashlib.sha256()
    with pulse.access():
        fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
            for at in range(0, len(memory), PIECE):
                with pulse.access():
                    data = memory[at : at + PIECE]
                digest.update(data)
    finally:
        os.close(fd)
    return digest.hexdigest() == wanted[""]


def by_safetensors(path: Path, wanted: dict[str, str], pulse: Pulse) -> bool:
    """Load every tensor of a shard with its own library; whether all are what was wanted."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return by_read(path, wanted, pulse)
    with pulse.access():
        # A file that cannot be opened is an exception without a number.
        os.close(os.open(path, os.O_RDONLY))
        file: Any = safe_open(path, framework="numpy")
    got = {}
    with file as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no dictionary
            with pulse.access():
                data = tensors.get_tensor(name).tobytes()
            got[name] = hashlib.sha256(data).hexdigest()
    return got == {name: digest for name, digest in wanted.items() if name}


def names_of(folder: Path, pulse: Pulse) -> Iterator[tuple[str, str]]:
    """List a folder: what became of each name, or of the listing."""
    try:
        with pulse.access():
            names = os.listdir(folder)
    except OSError as error:
        names, became = ["."], errno.errorcode.get(error.errno or 0, repr(error))
    else:
        became = "exact"
    return ((name, became) for name in names)


WAYS: dict[str, Callable[[Path, dict[str, str], Pulse], bool]] = {
    "read": by_read,
    "mmap": by_mmap,
    "safetensors": by_safetensors,
}


def main(way: str, folder: str, wanted: str, pulse_path: str) -> None:
    """Load every file of the folder that is wanted."""
    pulse, errors = Pulse(Path(pulse_path)), 0
    if way == "names":
        for name, became in names_of(Path(folder), pulse):
            print(json.dumps([name, became]), flush=True)
        return
    for name, digests in json.loads(Path(wanted).read_text()).items():
        try:
            exact = WAYS[way](Path(folder) / name, digests, pulse)
        except OSError as error:
            became = errno.errorcode.get(error.errno or 0, repr(error))
            errors += 1
        else:
            became = "exact" if exact else "wrong"
        print(json.dumps([name, became]), flush=True)
        if errors == ERRORS_MAX:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
