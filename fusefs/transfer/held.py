"""Files of a pull that are not whole yet, in `.fusefs-pull/` of the folder they are pulled to.

A file is two: its bytes, and a record of which pieces of which version are among them. The one
idea: a piece is recorded after its bytes were written, with their CRC, and the record names the
boot of the machine; so it holds after a kill, and after a crash, which may lose written bytes,
nothing is believed. Nor is a piece whose bytes the disk, or somebody, has changed since.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusefs.errors import FusefsError
from fusefs.objects import ObjectMeta
from fusefs.policy.crc import CRC32, find_computing
from fusefs.store.folders import (
    move_into_place,
    open_folder,
    path_segments,
    remove_file,
    writing_translated,
)
from fusefs.transfer.hashing import hash_descriptor
from fusefs.transfer.remote import PIECE_BYTES

VERSION = 2
"""Of the record: since 2 with CRCs."""

FOLDER = ".fusefs-pull"
_FOLDER = [FOLDER.encode()]
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PIECE = re.compile(rb"([0-9]{1,12}) ([0-9a-f]{8})")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def open_held(root: str) -> Iterator[None]:
    """Have the folder of unfinished files, for this process alone; it goes when it is empty.

    Raises `FusefsError` if another pull is at work there.
    """
    with writing_translated(f"the folder {root!r}"), open_folder(root, _FOLDER, make=True) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FusefsError(f"another pull into {root} is under way: wait for it") from error
        yield


def remove_held(root: str) -> None:
    """Remove what attempts at other files left, and the folder."""
    with writing_translated(f"the folder {root!r}"), open_folder(root, _FOLDER, make=False) as fd:
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
    with suppress(OSError), open_folder(root, [], make=False) as root_fd:
        os.rmdir(FOLDER, dir_fd=root_fd)


class HeldFile:
    """One file that grows piece by piece; `name` is its path below `root`.

    Thread-safe but for `prepare` and `finish`. All its state is on the disk.
    """

    def __init__(self, root: str, name: str, meta: ObjectMeta) -> None:
        self.name = name
        self.meta = meta
        self._root = root
        self._place = path_segments(name)
        stem = hashlib.sha256(b"/".join(self._place)).hexdigest()
        self._data = [*_FOLDER, f"{stem}.part".encode()]
        self._record = [*_FOLDER, f"{stem}.done".encode()]

    @property
    def pieces(self) -> int:
        """How many pieces there are, each of `PIECE_BYTES` but the last."""
        return -(-self.meta.size // PIECE_BYTES)

    def done(self) -> set[int]:
        """The pieces that an earlier attempt at this version has left. Changes nothing."""
        try:
            with self._open(self._data, os.O_RDONLY) as fd:
                size = os.fstat(fd).st_size
            with self._open(self._record, os.O_RDONLY) as fd, open(fd, "rb", closefd=False) as file:
                lines = file.read().split(b"\n")[:-1]  # what follows the last newline is torn
        except OSError:
            return set()
        if size != self.meta.size or not lines or lines[0] != self._head():
            return set()
        # A piece that was written twice has the CRC of the last time.
        crcs = {int(m[1]): int(m[2], 16) for m in map(_PIECE.fullmatch, lines[1:]) if m}
        return {
            index for index, crc in crcs.items() if index < self.pieces and self._has(index, crc)
        }

    def _has(self, index: int, crc: int) -> bool:
        """Whether the piece on the disk is the one that was recorded."""
        data = memoryview(bytearray(min(PIECE_BYTES, self.meta.size - index * PIECE_BYTES)))
        try:
            with self._open(self._data, os.O_RDONLY) as fd:
                count = os.preadv(fd, [data], index * PIECE_BYTES)
        except OSError:
            return False
        return count == len(data) and find_computing(CRC32)(data) == crc

    def prepare(self, done: set[int]) -> None:
        """Make the file, of its full length, with these pieces of it done.

        Without any, what there is is forgotten; else the record stays, and is added to.
        """
        with self._writing():
            if not done:
                remove_file(self._root, self._data)
                remove_file(self._root, self._record)
            with self._open(self._data, _FLAGS) as fd:
                os.ftruncate(fd, self.meta.size)
            with self._open(self._record, _FLAGS | os.O_APPEND) as fd:
                # The next line must not be joined to one that was torn.
                os.write(fd, b"\n" if done else self._head() + b"\n")

    def write(self, index: int, data: memoryview) -> None:
        """Have the piece on its place, then say so."""
        with self._writing():
            with self._open(self._data, os.O_RDWR) as fd:
                done = 0
                while done < len(data):
                    done += os.pwrite(fd, data[done:], index * PIECE_BYTES + done)
            with self._open(self._record, os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, b"%d %08x\n" % (index, find_computing(CRC32)(data)))

    def sha256(self, told: Callable[[int], None]) -> str:
        """The SHA-256 of what is there, in hex; `told` as `hash_descriptor` has it."""
        with self._writing(), self._open(self._data, os.O_RDONLY) as fd:
            return hash_descriptor(fd, told)

    def drop(self) -> None:
        """Forget it: the next attempt begins anew."""
        with self._writing():
            remove_file(self._root, self._record)
            remove_file(self._root, self._data)

    def finish(self) -> None:
        """Give the file its name, with the object's time. Its bytes are on the disk before."""
        with self._writing():
            with self._open(self._data, os.O_RDWR) as fd:
                os.utime(fd, ns=(self.meta.mtime_ns, self.meta.mtime_ns))
                os.fsync(fd)
            # First: a record without its bytes would be believed of the zeros of a new file.
            remove_file(self._root, self._record)
            move_into_place(self._root, self._data, self._place)

    def _head(self) -> bytes:
        """The first line of the record: the version, and what else must be the same."""
        head = {
            "v": VERSION,
            "boot": _BOOT_ID.read_text().strip(),
            "etag": self.meta.id.etag,
            "key": self.meta.id.key,
            "piece_bytes": PIECE_BYTES,
            "size": self.meta.size,
        }
        return json.dumps(head, sort_keys=True).encode("ascii")

    @contextmanager
    def _open(self, segments: list[bytes], flags: int) -> Iterator[int]:
        with open_folder(self._root, segments[:-1], make=False) as folder_fd:
            flags |= os.O_CLOEXEC | os.O_NOFOLLOW
            file_fd = os.open(segments[-1], flags, 0o666, dir_fd=folder_fd)
        try:
            yield file_fd
        finally:
            os.close(file_fd)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing_translated(f"the file {self.name!r} in {self._root!r}"):
            yield
