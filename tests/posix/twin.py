"""One root of two: makes the system calls that it is told to, and says what came of them.

    python -m tests.posix.twin ROOT SCRATCH

Reads one JSON request a line from stdin and answers each with a line: `["ok", result]` or
`["error", errno's name]`. A process of its own, since one that waits for a mount cannot be ended by
a signal, and nobody else should have to wait for it. Bytes are told by length and digest. The one
idea: this program knows nothing of mounts; the same requests to two of it must be answered alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_NAME_AT = 19  # d_name in struct dirent of x86-64 and arm64


def _told(data: bytes | memoryview) -> list[Any]:
    return [len(data), hashlib.sha256(data).hexdigest()[:16]]


class Twin:
    """Makes the calls.

    The mutable state of Twin is its open files and mappings, by number.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root = root
        self._scratch = scratch
        self._fds: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._direct: set[int] = set()

    def _at(self, name: str) -> str:
        """As it is said: a final slash means something."""
        return f"{self._root}/{name}"

    def answer(self, request: dict[str, Any]) -> list[Any]:
        """Make one call."""
        call = getattr(self, f"call_{request.pop('call')}")
        try:
            return ["ok", call(**request)]
        except OSError as error:
            return ["error", errno.errorcode.get(error.errno or 0, str(error))]

    # -- files ------------------------------------------------------------------------------------

    def call_open(self, file: int, name: str, direct: bool) -> None:
        flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
        try:
            self._fds[file] = os.open(self._at(name), flags)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            self._fds[file] = os.open(self._at(name), os.O_RDONLY)  # a tmpfs has none

    def call_dup(self, file: int, other: int) -> None:
        self._fds[other] = os.dup(self._fds[file])

    def call_close(self, file: int) -> None:
        with contextlib.suppress(KeyError):
            self._maps.pop(file).close()
        os.close(self._fds.pop(file))

    def call_pread(self, file: int, offset: int, size: int) -> list[Any]:
        return _told(os.pread(self._fds[file], size, offset))

    def call_direct(self, file: int, page: int, pages: int) -> list[Any]:
        """O_DIRECT wants aligned memory, offsets and sizes."""
        with mmap.mmap(-1, pages * PAGE) as buffer, memoryview(buffer) as view:
            got = os.preadv(self._fds[file], [view], page * PAGE)
            return _told(bytes(view[:got]))

    def call_readv(self, file: int, offset: int, sizes: list[int]) -> list[Any]:
        pieces = [bytearray(size) for size in sizes]
        got = os.preadv(self._fds[file], pieces, offset)
        return _told(b"".join(pieces)[:got])

    def call_read(self, file: int, size: int) -> list[Any]:
        return _told(os.read(self._fds[file], size))

    def call_lseek(self, file: int, offset: int, whence: int) -> int:
        return os.lseek(self._fds[file], offset, whence)

    def call_map(self, file: int) -> None:
        if os.fstat(self._fds[file]).st_size:
            self._maps[file] = mmap.mmap(self._fds[file], 0, prot=mmap.PROT_READ)

    def call_touch(self, file: int, page: int, pages: int, advice: int | None) -> list[Any] | None:
        mapping = self._maps.get(file)
        if mapping is None:
            return None
        start = page * PAGE % len(mapping) // PAGE * PAGE
        stop = min(start + pages * PAGE, len(mapping))
        if advice is not None:
            mapping.madvise(advice, start, stop - start)
        return _told(mapping[start:stop])

    def call_fadvise(self, file: int, offset: int, size: int, advice: int) -> None:
        os.posix_fadvise(self._fds[file], offset, size, advice)

    def call_fstat(self, file: int) -> list[Any]:
        return _shown(os.fstat(self._fds[file]))

    def call_sendfile(self, file: int, offset: int, size: int) -> list[Any]:
        with _pair() as (ours, theirs):
            sent = os.sendfile(ours.fileno(), self._fds[file], offset, min(size, 60_000))
            return _told(_received(theirs, sent))

    def call_splice(self, file: int, offset: int, size: int) -> list[Any]:
        reads, writes = os.pipe()
        try:
            got = os.splice(self._fds[file], writes, min(size, 60_000), offset_src=offset)
            return _told(os.read(reads, got) if got else b"")
        finally:
            os.close(reads)
            os.close(writes)

    def call_copy(self, file: int, offset: int, size: int) -> list[Any]:
        """copy_file_range, and what programs do where that is not to be had."""
        with (self._scratch / "copy").open("w+b") as copy:
            try:
                got = os.copy_file_range(self._fds[file], copy.fileno(), size, offset)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                got = os.sendfile(copy.fileno(), self._fds[file], offset, size)
            return _told(os.pread(copy.fileno(), got, 0))

    # -- names ------------------------------------------------------------------------------------

    def call_stat(self, name: str) -> list[Any]:
        return _shown(os.stat(self._at(name)))

    def call_list(self, name: str) -> list[str]:
        return sorted(os.listdir(self._at(name)))

    def call_scan(self, name: str) -> list[list[Any]]:
        with os.scandir(self._at(name)) as entries:
            return sorted(
                [
                    entry.name,
                    entry.is_dir(),
                    entry.is_file(),
                    entry.stat().st_size * entry.is_file(),
                ]
                for entry in entries
            )

    def call_seekdir(self, name: str, after: int) -> list[Any]:
        """The names of a directory, and whether those from a told place on come again."""
        fd = os.open(self._at(name), os.O_RDONLY | os.O_DIRECTORY)
        stream = ctypes.c_void_p(_libc.fdopendir(fd))
        names, places = [], [_libc.telldir(stream)]
        try:
            while entry := _libc.readdir(stream):
                names.append(ctypes.string_at(entry + _NAME_AT).decode())
                places.append(_libc.telldir(stream))
            after %= len(places)
            _libc.seekdir(stream, ctypes.c_long(places[after]))
            again = []
            while entry := _libc.readdir(stream):
                again.append(ctypes.string_at(entry + _NAME_AT).decode())
            return [sorted(names), again == names[after:]]
        finally:
            _libc.closedir(stream)

    def call_xattr(self, name: str, attribute: str) -> list[Any]:
        return _told(os.getxattr(self._at(name), attribute))

    def call_xattrs(self, name: str) -> list[str]:
        return [each for each in os.listxattr(self._at(name)) if each.startswith("user.")]

    def call_statvfs(self) -> int:
        return os.statvfs(self._root).f_namemax


def _shown(status: os.stat_result) -> list[Any]:
    """What of stat(2) is the same for a file and for what a mount shows of it."""
    if stat.S_ISDIR(status.st_mode):
        return ["directory"]
    kind = stat.S_IFMT(status.st_mode)
    return [kind, status.st_size, status.st_mtime_ns, status.st_nlink]


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield ours, theirs


def _received(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += end.recv(size - len(data))
    return data


def main(root: str, scratch: str) -> None:
    """Answer until stdin ends."""
    twin = Twin(Path(root), Path(scratch))
    for line in sys.stdin:
        print(json.dumps(twin.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
