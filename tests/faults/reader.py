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


Digests = dict[str, str]
"""SHA-256 of parts of a file by name: "" is the whole, all others are tensors."""


def by_read(path: Path, pulse: Pulse) -> Digests:
    """Read a file in pieces."""
    digest = hashlib.sha256()
    with pulse.access():
        fd = os.open(path, os.O_RDONLY)
    try:
        while True:
            with pulse.access():
                data = os.read(fd, PIECE)
            if not data:
                return {"": digest.hexdigest()}
            digest.update(data)
    finally:
        os.close(fd)


def by_mmap(path: Path, pulse: Pulse) -> Digests:
    """Copy a file out of a mapping."""
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
    return {"": digest.hexdigest()}


def by_safetensors(path: Path, pulse: Pulse) -> Digests:
    """Load every tensor of a shard with its own library."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return by_read(path, pulse)
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
    return got


def is_one_of(got: Digests, versions: list[Digests]) -> bool:
    """Whether all parts are those of one version."""
    whole = "" in got
    return got in [{n: d for n, d in version.items() if (n == "") is whole} for version in versions]


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


WAYS: dict[str, Callable[[Path, Pulse], Digests]] = {
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
    for name, versions in json.loads(Path(wanted).read_text()).items():
        try:
            exact = is_one_of(WAYS[way](Path(folder) / name, pulse), versions)
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
