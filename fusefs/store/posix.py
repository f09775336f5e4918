"""A directory as a bucket: `file:///dir`, for file systems that want to be read in parallel.

Files are found beneath the directory and nowhere else: the kernel itself refuses a path that leaves
it (openat2 with RESOLVE_BENEATH), so that neither a symlink nor a rename in flight leads outside. A
version is (mtime, size, inode), compared on the open file before and after every piece, so bytes of
two versions never mix unless a writer keeps all three.

Nothing is cached here, not even open files: a fresh open for each range is what makes NFS look for
a newer version (close-to-open), and makes a replaced file noticed everywhere. How the bytes come
without a second copy in the page cache is `fusefs.store.direct_read`'s.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusefs.config import Config
from fusefs.errors import (
    AccessDenied,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreTimeout,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta
from fusefs.store.base import Source, Store, Writer
from fusefs.store.direct_read import PIECE_BYTES, PieceReader

_SYS_OPENAT2 = 437
"""The same on every architecture: system calls added since Linux 5.1 share their numbers."""

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

_OPENAT2_TRIES = 16
"""openat2 answers EAGAIN when a rename somewhere in the system made its answer unsure. runc tries
128 times; a race of microseconds is not lost this often unless something is badly wrong."""

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""O_NONBLOCK: a FIFO put where a file was must not hang a worker. It means nothing to files."""

_LOOK_FLAGS = os.O_PATH | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK

_NOT_THERE = frozenset({errno.ENOENT, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG})
"""What opening says of a name that is not there. ELOOP and EXDEV are symlinks that we hide: to a
directory, or out of the source."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """`struct open_how` of linux/openat2.h."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class PosixStore:
    """Obeys `fusefs.store.base.Store`; a key is a path relative to the directory.

    Regular files are objects, and so are symlinks to regular files that resolve beneath the
    directory (the Hugging Face cache is made of those). Directories are prefixes. Everything else
    is hidden: other symlinks, sockets, FIFOs, devices. A listing is one page.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def check(self, prefix: str) -> None:
        """See `Store`. An empty directory is fine."""
        with _translated(f"the directory {self._directory!r}"):
            os.close(self._open_directory(prefix))

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`. A prefix that is no directory holds nothing, as in a bucket."""
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        try:
            with _translated(f"the directory {prefix!r}"):
                directory_fd = self._open_directory(prefix)
                try:
                    with os.scandir(directory_fd) as entries:
                        for entry in entries:
                            self._sort_in(entry, prefix, objects, prefixes)
                finally:
                    os.close(directory_fd)
        except ObjectNotFound:
            if not prefix:
                raise
        return ListPage(tuple(objects), tuple(prefixes), None)

    def head(self, key: str) -> ObjectMeta:
        """See `Store`."""
        with _translated(f"the file {key!r}"):
            file_fd = self._open_file(key, _LOOK_FLAGS)
            try:
                return _meta(key, _regular(os.fstat(file_fd)))
            finally:
                os.close(file_fd)

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        try:
            with _translated(f"the file {id.key!r}"):
                file_fd = self._open_file(id.key, _READ_FLAGS)
                try:
                    _fill(file_fd, id, extent, buffer, landed)
                finally:
                    os.close(file_fd)
        except ObjectNotFound as error:
            raise ObjectChanged(f"{error}: it was deleted") from error

    def close(self) -> None:
        """See `Store`: nothing is held between calls."""

    def _sort_in(
        self,
        entry: os.DirEntry[str],
        prefix: str,
        objects: list[ObjectMeta],
        prefixes: list[str],
    ) -> None:
        """Put one name of a directory where it belongs, if anywhere."""
        # os.scandir decodes with the locale; keys are UTF-8 whatever the locale is.
        key = prefix + os.fsencode(entry.name).decode("utf-8", "surrogateescape")
        if entry.is_dir(follow_symlinks=False):
            prefixes.append(f"{key}/")
            return
        try:
            if entry.is_symlink():
                objects.append(self.head(key))
            elif entry.is_file(follow_symlinks=False):
                objects.append(_meta(key, entry.stat(follow_symlinks=False)))
        except (ObjectNotFound, FileNotFoundError, AccessDenied):
            # Deleted since the directory was read, or a symlink we hide or may not follow.
            return

    def _open_directory(self, prefix: str) -> int:
        path = _path(prefix.removesuffix("/")) if prefix else b"."
        return self._open_beneath(path, _DIRECTORY_FLAGS, _RESOLVE_NO_SYMLINKS)

    def _open_file(self, key: str, flags: int) -> int:
        path = _path(key)
        try:
            return self._open_beneath(path, flags, _RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        # A symlink is on the way. As the last part it may lead to a file; before it, it would make
        # a directory appear that no listing shows.
        parent = path.rpartition(b"/")[0] or b"."
        os.close(self._open_beneath(parent, _LOOK_FLAGS | os.O_DIRECTORY, _RESOLVE_NO_SYMLINKS))
        return self._open_beneath(path, flags, 0)

    def _open_beneath(self, path: bytes, flags: int, resolve: int) -> int:
        """Open `path` below the directory, as it is now: it may be a symlink that was switched."""
        root_fd = os.open(self._directory, _LOOK_FLAGS | os.O_DIRECTORY)
        try:
            how = _OpenHow(flags, 0, resolve | _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
            return _openat2(root_fd, path, how)
        finally:
            os.close(root_fd)


def open_store(source: Source, config: Config) -> Store:
    """Make the store of a `file:///` source; it has no settings."""
    return PosixStore(source.bucket)


def open_writer(source: Source, config: Config) -> Writer:
    """Make the writer of a `file:///` destination; it has no settings."""
    from fusefs.store.posix_write import PosixWriter  # it asks this module for what it wrote

    return PosixWriter(source.bucket)


def preload() -> None:
    """Importing this module was all there is to warm."""


def _openat2(root_fd: int, path: bytes, how: _OpenHow) -> int:
    code = errno.EAGAIN
    for _ in range(_OPENAT2_TRIES):
        file_fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root_fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if file_fd >= 0:
            return file_fd
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EPERM):
            # EPERM: old container runtimes answer it for system calls they have not heard of.
            raise Unsupported("file:// sources need openat2 (Linux 5.6), which is not allowed here")
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def _path(key: str) -> bytes:
    """The path of a key. Keys that no listing gives name nothing: `a//b`, `a/`, `../a`, `/a`."""
    if "\0" in key or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise ObjectNotFound(f"{key!r} does not exist: it is not the path of a file")
    return key.encode("utf-8", "surrogateescape")


def _fill(
    file_fd: int,
    id: ObjectId,
    extent: Extent,
    buffer: memoryview,
    landed: Callable[[int], None] | None,
) -> None:
    _check_version(file_fd, id)
    reader = PieceReader(file_fd, extent)
    filled = 0
    while filled < extent.size:
        count = reader.read(buffer[filled : filled + PIECE_BYTES], extent.start + filled)
        # A writer may have been at work while we read: bytes are only final once this has passed.
        _check_version(file_fd, id)
        if count == 0:
            raise ObjectChanged(f"the file {id.key!r} ends before byte {extent.start + filled}")
        filled += count
        if landed is not None:
            landed(filled)


def _check_version(file_fd: int, id: ObjectId) -> None:
    if _etag(_regular(os.fstat(file_fd))) != id.etag:
        raise ObjectChanged(f"the file {id.key!r} was changed")


def _regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ENOENT, "not a regular file")
    return status


def _meta(key: str, status: os.stat_result) -> ObjectMeta:
    return ObjectMeta(ObjectId(key, _etag(status)), status.st_size, status.st_mtime_ns)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn the OSErrors of the body into `fusefs.errors`."""
    try:
        yield
    except OSError as error:
        raise _translation(what, error) from error
    except UnicodeEncodeError as error:
        raise ObjectNotFound(f"{what} does not exist: no file system can hold its name") from error


def _translation(what: str, error: OSError) -> FusefsError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno == errno.ENOTDIR:
        return ObjectNotFound(f"{what} does not exist: there is a file where a directory should be")
    if error.errno in _NOT_THERE:
        return ObjectNotFound(f"{what} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{what} may not be read by user {os.geteuid()}: {reason}")
    if error.errno == errno.ETIMEDOUT:
        return StoreTimeout(f"{what} could not be read in time: {reason}")
    # ESTALE, EIO, ENOMEM, EMFILE, ENETDOWN, …: what a network file system or a short machine says.
    return StoreUnavailable(f"{what} could not be read: {reason}")
