"""What the standard library does not say of memory: by address, in huge pages, already cached.

The one idea: each of these is a chance. Where the kernel does not know the call, the answer is the
one that changes nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_CACHESTAT = 451
"""cachestat(2), Linux 6.5; the same number on every architecture that is alive."""

_HUGE_BYTES = 2 << 20
_HUGE_MIN_BYTES = 4 << 20
"""Below it a mapping holds no aligned huge page for certain."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cache(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("pages", "dirty", "writeback", "evicted", "recently_evicted")
    )


def view_of(address: int, size_bytes: int) -> memoryview:
    """The memory at `address`, writable. Who owns it must outlive the view."""
    return memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B")


def use_huge_pages(address: int, size_bytes: int) -> None:
    """Ask for huge pages behind untouched memory: its first touch then costs a fraction."""
    if size_bytes < _HUGE_MIN_BYTES:
        return
    start = -(-address // _HUGE_BYTES) * _HUGE_BYTES
    size = (address + size_bytes - start) // _HUGE_BYTES * _HUGE_BYTES
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


def cached_bytes(fd: int) -> int:
    """How much of a file the kernel has in its page cache; 0 if it does not say."""
    everything, cache = _Range(0, 0), _Cache()
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(cache), 0) != 0:
        return 0
    return int(cache.pages) * os.sysconf("SC_PAGESIZE")
