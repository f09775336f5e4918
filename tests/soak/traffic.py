"""What a node's applications do with a mount, all at once, until told to pause.

Each `Work` repeats one thing and compares what it gets. The one idea: between two repetitions it
holds nothing, so that in a pause every handle, stream, plan and pin must be gone.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loaderhint
from tests.hints.client import connect, inode

MIB = 1 << 20
PAUSE_S = 0.05
"""Between two repetitions: the soak is about what remains, not about load."""

CHANGING = "changing.bin"
CHANGING_BYTES = 6 * MIB + 17
VANISHING = "vanishing.bin"


class Work(threading.Thread):
    """Repeats one thing.

    The mutable state of Work is how often it was done, and what went wrong first.
    """

    def __init__(self, name: str, once: Callable[[], None], gate: Gate) -> None:
        super().__init__(name=name, daemon=True)
        self._once = once
        self._gate = gate
        self.done = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Repeat until the gate is closed for good, or it fails."""
        try:
            while self._gate.enter():
                try:
                    self._once()
                    self.done += 1
                finally:
                    self._gate.leave()
                time.sleep(PAUSE_S)
        except Exception as error:  # noqa: BLE001 - told by whoever waits for the soak
            self.failure = error


class Gate:
    """Lets works pass, holds them up in a pause, or sends them home.

    The mutable state of Gate is whether it is open, whether it ends, and how many are inside.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._ends = False
        self._inside = 0

    def enter(self) -> bool:
        """Pass, maybe after a pause; false at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._ends)
            self._inside += not self._ends
            return not self._ends

    def leave(self) -> None:
        """Come out again."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def pause(self, timeout_s: float) -> None:
        """Let nobody in, and wait until all are out. AssertionError past `timeout_s`."""
        with self._changed:
            self._open = False
            assert self._changed.wait_for(lambda: not self._inside, timeout_s), "somebody hangs"

    def resume(self) -> None:
        """Let them in again."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def end(self) -> None:
        """Send everybody home."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()


class Traffic:
    """The works of one mount. `expected` has the bytes of the files that do not change.

    The mutable state of Traffic is the number of the version last written, and the randomness.
    """

    def __init__(self, mount: Path, expected: dict[str, bytes], client: Any, bucket: str) -> None:
        self._mount = mount
        self._expected = expected
        self._client = client
        self._bucket = bucket
        self._version = 0
        self._chance = random.Random(3)

    def works(self, gate: Gate) -> list[Work]:
        """One of each kind, not started."""
        each = [self.load, self.hint, self.slots, self.list, self.overwrite, self.fail, self.jump]
        return [Work(once.__name__, once, gate) for once in each]

    def load(self) -> None:
        """A whole file, mapped or read."""
        name = self._chance.choice(list(self._expected))
        with (self._mount / name).open("rb", buffering=0) as file:
            if self._chance.random() < 0.5:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    assert mapped[:] == self._expected[name]
            else:
                assert file.read() == self._expected[name]

    def hint(self) -> None:
        """A hint by the library, followed to its end or cancelled."""
        names = self._chance.sample(list(self._expected), 2)
        paths = [self._mount / name for name in names]
        hint = loaderhint.hint([str(path) for path in paths])
        if self._chance.random() < 0.5:
            hint.cancel()
        hint.close()

    def slots(self) -> None:
        """A plan of slots: mapped, waited for, and left without letting go of a single one."""
        path = self._mount / self._chance.choice(list(self._expected))
        with path.open("rb"), connect(self._mount) as client:  # open: else it may be forgotten
            number = inode(path)
            stop = min(MIB, path.stat().st_size)
            files = [{"inode": number, "extents": [[0, stop]]}]
            client.ask("plan", plan="p", mode="slots", files=files)
            client.ask("map", plan="p")
            client.ask("wait", plan="p", inode=number, start=0, stop=stop, timeout_ms=20_000)

    def list(self) -> None:
        """The directory, every name in it, and a name that is not."""
        names = os.listdir(self._mount)
        assert set(self._expected) <= set(names)
        for name in self._expected:
            assert (self._mount / name).stat().st_size == len(self._expected[name])
        assert not (self._mount / f"absent-{self._chance.random()}").exists()

    def overwrite(self) -> None:
        """A new version of an object that is open: bytes of one version, or ESTALE."""
        self._version += 1
        body = bytes([self._version % 251]) * CHANGING_BYTES
        with self._opened(CHANGING) as file:
            self._client.put_object(Bucket=self._bucket, Key=CHANGING, Body=body)
            got = _read_or_stale(file.fileno())
            assert got is None or len(set(got)) == 1, "a mixture of versions"

    def fail(self) -> None:
        """An object that is deleted while it is open: its bytes, or ESTALE."""
        body = os.urandom(2 * MIB)
        self._client.put_object(Bucket=self._bucket, Key=VANISHING, Body=body)
        try:
            file = (self._mount / VANISHING).open("rb", buffering=0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return  # believed absent for ten seconds, or another version of it is
            raise
        with file:
            self._client.delete_object(Bucket=self._bucket, Key=VANISHING)
            _read_or_stale(file.fileno())

    def jump(self) -> None:
        """Reads anywhere, past the page cache too."""
        name = self._chance.choice(list(self._expected))
        want = self._expected[name]
        fd = os.open(self._mount / name, os.O_RDONLY | self._chance.choice([0, os.O_DIRECT]))
        buffer = mmap.mmap(-1, 64 << 10)
        try:
            for _ in range(8):
                at = self._chance.randrange(len(want)) // 4096 * 4096
                count = os.preadv(fd, [buffer], at)
                assert buffer[:count] == want[at : at + len(buffer)]
        finally:
            os.close(fd)

    def _opened(self, name: str) -> Any:
        """The file; a version that was replaced meanwhile is asked for anew."""
        try:
            return (self._mount / name).open("rb", buffering=0)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return (self._mount / name).open("rb", buffering=0)


def _read_or_stale(fd: int) -> bytes | None:
    """All bytes, or None where the version is gone."""
    pieces = []
    try:
        while piece := os.read(fd, MIB):
            pieces.append(piece)
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise
    return b"".join(pieces)
