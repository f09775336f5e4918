"""What a pull finds in its folder already: equal files are left, others are in the way.

The one idea: a file of the manifest is equal if its bytes hash to what the manifest says; one that
no manifest knows, if it has the object's size and time, which `fusefs pull` gives its files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from enum import Enum

from fusefs.errors import FusefsError, Unsupported
from fusefs.objects import ObjectMeta
from fusefs.store.folders import open_folder, path_segments, writing_translated
from fusefs.transfer.hashing import hash_descriptor


class Present(Enum):
    """What has the name of an object."""

    NOTHING = "nothing"
    EQUAL = "an equal file"
    DIFFERENT = "something else"


def look(
    root: str, name: str, meta: ObjectMeta, sha256: str | None, told: Callable[[int], None]
) -> Present:
    """Compare what is at `name` below `root`; `told` as `hash_descriptor` has it.

    Raises `Unsupported` where there is a folder for a file or the other way round: no force
    replaces that.
    """
    segments = path_segments(name)
    try:
        with open_folder(root, segments[:-1], make=False) as folder_fd:
            status = os.stat(segments[-1], dir_fd=folder_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise Unsupported(f"{name!r} is a folder in {root}: take it away first")
            if not stat.S_ISREG(status.st_mode) or status.st_size != meta.size:
                return Present.DIFFERENT
            if sha256 is None:
                same = status.st_mtime_ns == meta.mtime_ns
            else:
                same = _hash(folder_fd, segments[-1], told) == sha256
    except FileNotFoundError:
        return Present.NOTHING
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Unsupported(
                f"a file or a symlink in {root} stands where the folder of {name!r} should be: take"
                " it away first"
            ) from error
        raise FusefsError(f"{name!r} in {root} cannot be looked at: {error.strerror}") from error
    return Present.EQUAL if same else Present.DIFFERENT


def check_room(root: str, size: int) -> None:
    """Raise `FusefsError` if the disk has no room for `size` more bytes."""
    there = os.path.realpath(root)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    with writing_translated(f"the folder {root!r}"):
        disk = os.statvfs(there)
    room = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and size > room:
        raise FusefsError(
            f"{root} has room for {room} bytes and {size} are to come: make room, or choose another"
            " folder"
        )


def _hash(folder_fd: int, name: bytes, told: Callable[[int], None]) -> str:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file_fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        return hash_descriptor(file_fd, told)
    finally:
        os.close(file_fd)
