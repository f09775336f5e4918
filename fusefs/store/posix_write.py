"""Writing to a directory, for `fusefs push` to a `file:///` destination.

A file grows under `.fusefs/parts/` of the directory, a name that no mount shows, and is renamed
into place once its bytes are on the disk: readers see the old file, then the new one. The one idea:
a part is compared with what an earlier attempt left at its place, byte by byte, so that resuming
needs no notes that could be wrong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fusefs.errors import FusefsError
from fusefs.objects import ObjectMeta
from fusefs.store.base import Upload
from fusefs.store.folders import (
    move_into_place,
    open_folder,
    path_segments,
    remove_empty_folders,
    remove_file,
    writing_translated,
)
from fusefs.store.posix import PosixStore

PART_BYTES = 8 << 20
"""Each thread holds one part in memory, and network file systems are fast from 1 MiB on."""

_COMPARED_BYTES = 1 << 20
"""Compared piece by piece: the first difference ends it."""

PARTS = [b".fusefs", b"parts"]
"""The folder of what is not whole yet."""

_KEY_NAME = b"key"
_DATA_NAME = b"data"


class PosixWriter:
    """Obeys `fusefs.store.base.Writer`; a key is a path relative to the directory.

    The directory and the folders in it are made when they are needed, and folders go with the last
    file that is deleted. Files and folders get the modes that the umask leaves.
    """

    def __init__(self, directory: str, part_bytes: int = PART_BYTES) -> None:
        self._directory = directory
        self._part_bytes = part_bytes

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        upload = PosixUpload(self._directory, key, len(data), max(1, len(data)))
        if data:
            upload.put_part(0, memoryview(data))
        return upload.commit()

    def begin(self, key: str, size: int) -> Upload:
        """See `Writer`."""
        return PosixUpload(self._directory, key, size, self._part_bytes)

    def delete(self, key: str) -> None:
        """See `Writer`."""
        segments = path_segments(key)
        with writing_translated(f"the file {key!r}"):
            remove_file(self._directory, segments)
            remove_empty_folders(self._directory, segments[:-1])

    def discard(self, prefix: str) -> int:
        """See `Writer`."""
        count = 0
        with writing_translated(f"the unfinished files below {prefix!r}"):
            for name in self._unfinished():
                if self._key_of(name).startswith(prefix):
                    remove_file(self._directory, [*PARTS, name, _DATA_NAME])
                    _forget(self._directory, [*PARTS, name])
                    count += 1
            remove_empty_folders(self._directory, PARTS)
        return count

    def publish(self, prefix: str) -> None:
        """See `Writer`: files appear one by one here, so only the empty folder of parts goes."""
        remove_empty_folders(self._directory, PARTS)

    def close(self) -> None:
        """See `Writer`: nothing is held between calls."""

    def _unfinished(self) -> list[bytes]:
        try:
            with open_folder(self._directory, PARTS, make=False) as folder_fd:
                return [os.fsencode(name) for name in os.listdir(folder_fd)]
        except FileNotFoundError:
            return []

    def _key_of(self, name: bytes) -> str:
        """The key of an unfinished file; "" if the attempt was cut before it had said so."""
        with (
            suppress(FileNotFoundError),
            open_folder(self._directory, [*PARTS, name], make=False) as folder_fd,
        ):
            file_fd = os.open(_KEY_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
            with open(file_fd, "rb") as file:
                return file.read().decode("utf-8", "surrogateescape")
        return ""


class PosixUpload:
    """Obeys `fusefs.store.base.Upload`: one file that grows out of sight."""

    def __init__(self, directory: str, key: str, size: int, part_bytes: int) -> None:
        self.part_bytes = part_bytes
        self._directory = directory
        self._key = key
        self._size = size
        self._place = path_segments(key)
        if self._place[:2] == PARTS:
            raise FusefsError(f"{key!r} cannot be written: fusefs keeps unfinished files there")
        # A digest: a key's own segments could not hold a suffix, and may be of any depth.
        digest = hashlib.sha256("/".join(map(repr, self._place)).encode()).hexdigest()
        self._held = [*PARTS, digest.encode()]
        with writing_translated(self._what):
            self._prepare()

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`. `commit` waits for the disk, not this."""
        offset = index * self.part_bytes
        if offset + len(data) > self._size:
            raise FusefsError(f"part {index} of {self._key!r} goes beyond its {self._size} bytes")
        with writing_translated(self._what), self._open() as file_fd:
            if _holds(file_fd, offset, data):
                return False
            done = 0
            while done < len(data):
                done += os.pwrite(file_fd, data[done:], offset + done)
            return True

    def commit(self) -> ObjectMeta:
        """See `Upload`."""
        with writing_translated(self._what):
            with self._open() as file_fd:
                os.fsync(file_fd)
            move_into_place(self._directory, [*self._held, _DATA_NAME], self._place)
            _forget(self._directory, self._held)
        return PosixStore(self._directory).head(self._key)

    @property
    def _what(self) -> str:
        return f"the file {self._key!r} in {self._directory!r}"

    def _prepare(self) -> None:
        """Have an unfinished file of the right length; keep what an earlier attempt wrote."""
        with open_folder(self._directory, self._held, make=True) as folder_fd:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            key_fd = os.open(_KEY_NAME, flags | os.O_TRUNC, 0o666, dir_fd=folder_fd)
            with open(key_fd, "wb") as file:
                file.write(b"/".join(self._place))
            data_fd = os.open(_DATA_NAME, flags, 0o666, dir_fd=folder_fd)
            with open(data_fd, "r+b") as file:
                file.truncate(self._size)

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The unfinished file, open for one call: any number of uploads may be begun at once."""
        with open_folder(self._directory, self._held, make=False) as folder_fd:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            file_fd = os.open(_DATA_NAME, flags, dir_fd=folder_fd)
        try:
            yield file_fd
        finally:
            os.close(file_fd)


def _forget(directory: str, held: list[bytes]) -> None:
    """Remove the folder of an upload that has no data any more, and nothing above it.

    The folder above is shared with uploads that begin just now.
    """
    remove_file(directory, [*held, _KEY_NAME])
    with open_folder(directory, held[:-1], make=False) as folder_fd:
        os.rmdir(held[-1], dir_fd=folder_fd)


def _holds(file_fd: int, offset: int, data: memoryview) -> bool:
    """Whether the file has these bytes there."""
    for start in range(0, len(data), _COMPARED_BYTES):
        piece = data[start : start + _COMPARED_BYTES]
        if os.pread(file_fd, len(piece), offset + start) != piece:
            return False
    return True
