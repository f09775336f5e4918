"""Folders and files below one root, for whoever writes there: no name leads out of it.

The one idea: a path is walked segment by segment, each opened in the folder before it and never
through a symlink, so that neither a hostile key nor a symlink that somebody left leads elsewhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fusefs.errors import AccessDenied, FusefsError, StoreUnavailable, Unsupported

_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_AGAIN = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.EINTR})
"""What network file systems say of a server that is away; the rest stays as it is."""


def path_segments(key: str) -> list[bytes]:
    """The segments of a relative path. Raises `Unsupported` for what is none: `../a`, `a//b`."""
    try:
        segments = key.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError as error:
        raise Unsupported(f"{key!r} cannot be the path of a file: rename it") from error
    if any(s in (b"", b".", b"..") or b"\0" in s or len(s) > 255 for s in segments):
        raise Unsupported(f"{key!r} cannot be the path of a file: rename it")
    return segments


@contextmanager
def open_folder(root: str, segments: list[bytes], make: bool) -> Iterator[int]:
    """Open the folder that `segments` lead to from `root`; make what is missing if `make`.

    Raises OSError: ENOENT, or ENOTDIR and ELOOP where something else is in the way.
    """
    if make:
        os.makedirs(root, exist_ok=True)
    folder_fd = os.open(root, _FOLDER_FLAGS)
    try:
        for segment in segments:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(segment, dir_fd=folder_fd)
            # O_NOFOLLOW: for the root alone, which its owner named, a symlink will do.
            next_fd = os.open(segment, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder_fd)
            os.close(folder_fd)
            folder_fd = next_fd
        yield folder_fd
    finally:
        os.close(folder_fd)


def move_into_place(root: str, held: list[bytes], place: list[bytes]) -> None:
    """Rename the file `held` to `place`, replacing a file there, and make that outlast a crash.

    The file's own bytes are the caller's to fsync. Raises OSError.
    """
    with (
        open_folder(root, held[:-1], make=False) as from_fd,
        open_folder(root, place[:-1], make=True) as to_fd,
    ):
        os.rename(held[-1], place[-1], src_dir_fd=from_fd, dst_dir_fd=to_fd)
        os.fsync(to_fd)


def remove_file(root: str, segments: list[bytes]) -> bool:
    """Remove a file; tell whether there was one. Raises OSError for all but that there was not."""
    try:
        with open_folder(root, segments[:-1], make=False) as folder_fd:
            os.unlink(segments[-1], dir_fd=folder_fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_empty_folders(root: str, segments: list[bytes]) -> None:
    """Remove this folder and those above it, below `root`, as long as they are empty."""
    for depth in range(len(segments), 0, -1):
        try:
            with open_folder(root, segments[: depth - 1], make=False) as folder_fd:
                os.rmdir(segments[depth - 1], dir_fd=folder_fd)
        except OSError:  # not empty, or gone already: a folder that stays harms nobody
            return


@contextmanager
def writing_translated(what: str) -> Iterator[None]:
    """Turn the OSErrors of the body into `fusefs.errors`."""
    try:
        yield
    except OSError as error:
        raise _translation(what, error) from error


def _translation(what: str, error: OSError) -> FusefsError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _FULL:
        return FusefsError(f"{what} cannot be written, there is no room: {reason}")
    if error.errno in _REFUSED:
        return AccessDenied(f"{what} may not be written by user {os.geteuid()}: {reason}")
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return Unsupported(f"{what} cannot be written: there is a folder where a file should be")
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return Unsupported(
            f"{what} cannot be written: there is a file or a symlink where a folder should be"
        )
    if error.errno in _AGAIN:
        return StoreUnavailable(f"{what} could not be written: {reason}")
    return FusefsError(f"{what} could not be written: {reason}")
