"""Two roots, one plain and one on a mount of it, asked the same: hypothesis looks for a difference.

The mount believes nothing for longer than a request (`tree.ttl_s=0`), so a name leads to the same
version on both sides. A plain file that is replaced lives on for those who have it open: so the
plain side says what the pinned version holds, and the mount says the same or ESTALE.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    precondition,
    rule,
)

from tests.harness.mounted import ROOT

MIB = 1 << 20
ANSWER_TIMEOUT_S = 60.0
SIZES = {
    "empty": 0, "one": 1, "page": 4096, "odd": 70_001, "block": MIB, "more": MIB + 1,
    "big.bin": 5 * MIB + 333, "sub/w.safetensors": 3 * MIB + 9, "sub/deep/x": 12,
}  # fmt: skip
NAMES = st.sampled_from(sorted(SIZES))
PLACES = st.sampled_from(["", "sub", "sub/deep", "absent", "one", "one/below", "sub/", "one/"])
OFFSETS = st.one_of(st.integers(0, 6 * MIB), st.sampled_from([0, 1, 4095, 4096, MIB - 1, MIB]))
LENGTHS = st.one_of(st.integers(0, 300_000), st.sampled_from([0, 1, 4096, MIB, 2 * MIB]))
PAGES = st.integers(0, 1400)
ADVICE = st.sampled_from(
    [None, mmap.MADV_WILLNEED, mmap.MADV_DONTNEED, mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL]
)
WHENCES = st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE])


class Stuck(Exception):
    """A call has no answer."""


class Asked:
    """One twin, in a process of its own."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.posix.twin", str(root), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def ask(self, request: dict[str, Any]) -> list[Any]:
        """The answer to one request. Raises Stuck."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        to.write(json.dumps(request).encode() + b"\n")
        to.flush()
        if not select.select([back], [], [], ANSWER_TIMEOUT_S)[0]:
            raise Stuck(f"no answer within {ANSWER_TIMEOUT_S:g} s: {request}")
        answer: list[Any] = json.loads(back.readline())
        return answer

    def end(self) -> None:
        """End it, so that it holds no file any more.

        One that hangs in the kernel ends only when its mount does: `wait` for it then.
        """
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait()

    def wait(self) -> None:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        self._process.wait(timeout=30)


@dataclass(slots=True)
class Roots:
    """The plain directory, both twins, and how often each call was made."""

    plain: Path
    mounted: Asked
    reference: Asked
    made: dict[str, int] = field(default_factory=dict)
    estale: int = 0
    versions: int = 0

    def write(self, name: str, size: int) -> None:
        """A new version of a file, as a whole and at once."""
        self.versions += 1
        new = self.plain.parent / "new"
        new.write_bytes(random.Random(self.versions).randbytes(size))
        new.rename(self.plain / name)


class Machine(RuleBasedStateMachine):
    """What may be done, in any order. `roots` is set by who runs it."""

    roots: Roots
    handles: Bundle[int] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self._last = 0
        self._names: dict[int, str] = {}
        self._stale: set[int] = set()
        self._mapped: set[int] = set()
        for name, size in SIZES.items():
            if not (self.roots.plain / name).exists():
                self.roots.write(name, size)
        self._begin_with_a_stale_one("big.bin")

    def _begin_with_a_stale_one(self, name: str) -> None:
        """A file is replaced while it is open and nothing of it was read."""
        self._last += 1
        self.roots.write(name, SIZES[name])
        self._both("open", file=self._last, name=name, direct=True)
        self.roots.write(name, SIZES[name])
        self._stale.add(self._last)
        self._both("direct", file=self._last, page=600, pages=64)
        self._both("close", file=self._last)

    def _both(self, call: str, **fields: Any) -> list[Any]:
        """Ask both. On a handle whose file was replaced the mount may say ESTALE."""
        self.roots.made[call] = self.roots.made.get(call, 0) + 1
        ours = self.roots.mounted.ask({"call": call, **fields})
        theirs = self.roots.reference.ask({"call": call, **fields})
        if fields.get("file") in self._stale and ours == ["error", "ESTALE"]:
            self.roots.estale += 1
            return ours
        assert ours == theirs, f"{call} {fields}: {ours}, and beside the mount {theirs}"
        return ours

    # -- handles ----------------------------------------------------------------------------------

    @rule(target=handles, name=NAMES | PLACES, direct=st.booleans())
    def open(self, name: str, direct: bool) -> Any:
        self._last += 1
        if (self.roots.plain / name).is_dir():
            return multiple()
        if self._both("open", file=self._last, name=name, direct=direct)[0] != "ok":
            return multiple()
        self._names[self._last] = name
        return self._last

    @rule(target=handles, file=handles)
    def dup(self, file: int) -> int:
        self._last += 1
        self._both("dup", file=file, other=self._last)
        self._names[self._last] = self._names[file]
        if file in self._stale:
            self._stale.add(self._last)
        return self._last

    @rule(file=consumes(handles))
    def close(self, file: int) -> None:
        self._both("close", file=file)
        self._names.pop(file)
        self._stale.discard(file)
        self._mapped.discard(file)

    def teardown(self) -> None:
        for file in list(self._names):
            self._both("close", file=file)

    # -- bytes ------------------------------------------------------------------------------------

    @rule(file=handles, page=PAGES, pages=st.integers(1, 300))
    def read_aligned(self, file: int, page: int, pages: int) -> None:
        self._both("direct", file=file, page=page, pages=pages)

    @rule(name=NAMES, offset=OFFSETS, size=LENGTHS, sizes=st.lists(LENGTHS, max_size=3))
    def read_once(self, name: str, offset: int, size: int, sizes: list[int]) -> None:
        """Calls that take any offset: on a handle of their own, without O_DIRECT."""
        self._last += 1
        file = self._last
        if self._both("open", file=file, name=name, direct=False)[0] != "ok":
            return
        self._both("pread", file=file, offset=offset, size=size)
        self._both("readv", file=file, offset=offset, sizes=sizes)
        self._both("sendfile", file=file, offset=offset, size=size)
        self._both("splice", file=file, offset=offset, size=size)
        self._both("copy", file=file, offset=offset, size=size)
        self._both("close", file=file)

    @rule(file=handles, offset=st.integers(-MIB, 6 * MIB), whence=WHENCES)
    def lseek(self, file: int, offset: int, whence: int) -> None:
        self._both("lseek", file=file, offset=offset // 4096 * 4096, whence=whence)

    @rule(file=handles)
    def fstat(self, file: int) -> None:
        if file not in self._stale:  # its plain twin has lost its name, and so its link
            self._both("fstat", file=file)

    @rule(file=handles, offset=OFFSETS, size=LENGTHS, advice=st.sampled_from([0, 1, 2, 3, 4]))
    def fadvise(self, file: int, offset: int, size: int, advice: int) -> None:
        self._both("fadvise", file=file, offset=offset, size=size, advice=advice)

    @rule(file=handles, page=PAGES, pages=st.integers(1, 300), advice=ADVICE)
    def touch(self, file: int, page: int, pages: int, advice: int | None) -> None:
        if file in self._stale:
            return  # SIGBUS, as documented
        if file not in self._mapped:
            self._mapped.add(file)
            self._both("map", file=file)
        self._both("touch", file=file, page=page, pages=pages, advice=advice)

    # -- names ------------------------------------------------------------------------------------

    @rule(name=NAMES | PLACES)
    def stat(self, name: str) -> None:
        self._both("stat", name=name)

    @rule(name=NAMES | PLACES, after=st.integers(0, 12))
    def list(self, name: str, after: int) -> None:
        for call in ("list", "scan"):
            self._both(call, name=name)
        if (self.roots.plain / name).is_dir():
            self._both("seekdir", name=name, after=after)

    @rule(name=NAMES | PLACES, attribute=st.sampled_from(["user.absent", "user.fusefs.no"]))
    def xattr(self, name: str, attribute: str) -> None:
        self._both("xattr", name=name, attribute=attribute)
        self._both("xattrs", name=name)

    @rule()
    def statvfs(self) -> None:
        self._both("statvfs")

    # -- the backend ------------------------------------------------------------------------------

    def _replaced(self, name: str, page: int) -> None:
        """Who has the old version open still reads it, or is told."""
        files = {file for file, known in self._names.items() if known == name}
        self._stale |= files
        for file in sorted(files):
            self._both("direct", file=file, page=page, pages=64)

    @rule(name=NAMES, size=st.sampled_from([0, 1, 4096, MIB + 7, 4 * MIB]), page=PAGES)
    def overwrite(self, name: str, size: int, page: int) -> None:
        self.roots.write(name, size)
        self._replaced(name, page)

    @rule(file=handles, page=PAGES)
    def overwrite_what_is_open(self, file: int, page: int) -> None:
        name = self._names[file]
        self.roots.write(name, SIZES[name])
        self._replaced(name, page)

    @precondition(lambda self: self._last % 3 == 0)
    @rule(name=NAMES, page=PAGES)
    def delete(self, name: str, page: int) -> None:
        (self.roots.plain / name).unlink(missing_ok=True)
        self._replaced(name, page)
