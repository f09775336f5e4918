"""Pieces of one open file, straight into the caller's memory, and once in the page cache at most.

What a mount serves ends in the page cache as pages of the mount. Read in the usual way, the source
(NFS, Lustre, a disk) would leave a second copy there. The one idea: nothing is asked about the kind
of file system; each extent tries what costs least and takes the next that works.

1. All of it is in the page cache already (somebody reads it there, or it is a tmpfs): copied from
   it, and left there.
2. O_DIRECT: one large request for each piece, no second copy, no readahead that guesses.
3. What refuses that (EINVAL) is read through the page cache and then dropped from it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

from fusefs.objects import Extent

PIECE_BYTES = 1 << 20
"""One read, and one `landed`: the block of the arena, and the largest rsize of NFS."""

SMALL_BYTES = 64 << 10
"""Below this an extent is read through the page cache: headers and indexes are read again and
again, and readahead is no loss there."""

_ALIGNMENT = mmap.PAGESIZE
"""Of memory, offset and size: what NFS, Lustre and FUSE want, and no less than the block of a disk
(statx says 512 to 4096)."""

_SYS_CACHESTAT = 451
"""Since Linux 6.5, on every architecture."""

_REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})

_libc = ctypes.CDLL(None, use_errno=True)


class PieceReader:
    """Reads the pieces of one extent, for one thread; `file_fd` is this reader's alone."""

    def __init__(self, file_fd: int, extent: Extent) -> None:
        self._fd = file_fd
        self._extent = extent
        # The mutable state of PieceReader: how it reads, found out at the first piece.
        self._decided = False
        self._direct = False
        self._drop = False

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` (at most `PIECE_BYTES`) from `offset`; how many bytes, 0 beyond the end.

        Raises OSError.
        """
        if not self._decided:
            self._decide()
        if self._direct:
            try:
                return self._read_direct(buffer, offset)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._leave_direct()
        count = os.preadv(self._fd, [buffer], offset)
        if self._drop:
            # The page at the end of an extent is shared with its neighbour, and stays: only whole
            # pages are dropped.
            os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def _decide(self) -> None:
        self._decided = True
        if self._extent.size < SMALL_BYTES or _is_cached(self._fd, self._extent):
            return
        self._drop = True
        # For what is not read directly: the pieces alone, their neighbours are others' business.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        if self._extent.start % _ALIGNMENT == 0:
            self._direct = self._set_direct(True)

    def _set_direct(self, wanted: bool) -> bool:
        """Set or clear O_DIRECT; False if the file system has none.

        Later and not at open: a file that is served by a program (FUSE) need not know.
        """
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return False
        return True

    def _leave_direct(self) -> None:
        self._direct = False
        self._set_direct(False)

    def _read_direct(self, buffer: memoryview, offset: int) -> int:
        if offset % _ALIGNMENT:
            # A file system gave less than it was asked for, in the middle of a file.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if len(buffer) % _ALIGNMENT == 0 and _address(buffer) % _ALIGNMENT == 0:
            return os.preadv(self._fd, [buffer], offset)
        # The tail of a file, and memory that is not the arena's: by way of aligned memory, 0.1 ms.
        size = len(buffer)
        with mmap.mmap(-1, -(-size // _ALIGNMENT) * _ALIGNMENT) as aligned:
            count = min(os.preadv(self._fd, [aligned], offset), size)
            with memoryview(aligned) as view:
                buffer[:count] = view[:count]
        return count


class _CacheRange(ctypes.Structure):
    """`struct cachestat_range` of linux/mman.h."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStatistics(ctypes.Structure):
    """`struct cachestat`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent")
    )


def _is_cached(file_fd: int, extent: Extent) -> bool:
    """Whether all pages of the extent are in the page cache; False where the kernel cannot tell.

    mincore(2) of older kernels would say yes to everything of files that are not ours.
    """
    pages = -(-extent.stop // mmap.PAGESIZE) - extent.start // mmap.PAGESIZE
    wanted = _CacheRange(extent.start, extent.size)
    found = _CacheStatistics()
    failed: int = _libc.syscall(
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_uint(file_fd),
        ctypes.byref(wanted),
        ctypes.byref(found),
        ctypes.c_uint(0),
    )
    return failed == 0 and found.cache >= pages


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
