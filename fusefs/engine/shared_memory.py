"""Shared memory without a name, in huge pages where we may have them.

A first touch costs a page fault for every 4 KiB in every process that maps the memory, more than
the copy; huge pages make it one for 2 MiB (512 MiB: 0.4 s of CPU against 0.04-0.17). Most systems
give none to memfds (`shmem_enabled` is "never"), but a tmpfs of our own may have them. It is
mounted nowhere: it lives as long as the descriptor. That takes CAP_SYS_ADMIN; else a memfd serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""Numbers of the system calls, the same on every architecture since Linux 5.2."""

_SET_STRING, _CMD_CREATE = 1, 6
"""enum fsconfig_command of <linux/mount.h>."""

_CLOEXEC = 1
"""FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC of <linux/mount.h>."""

_HUGE_PAGE_BYTES = 2 << 20


def open_shared_memory(size: int) -> int:
    """A descriptor of `size` bytes of zeros that nobody can open by a path."""
    try:
        fd = _open_on_tmpfs(size)
    except OSError:  # not permitted, or a kernel without one of these
        fd = os.memfd_create("fusefs-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def map_shared_memory(fd: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """Map all of it."""
    memory = mmap.mmap(fd, 0, prot=prot)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _open_on_tmpfs(size: int) -> int:
    """A file without a name on a tmpfs without a mountpoint. Raises OSError."""
    room = -(-size // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    context = _call(_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        for key, value in ((b"huge", b"always"), (b"size", b"%d" % room), (b"mode", b"0700")):
            _call(_FSCONFIG, context, _SET_STRING, key, value, 0)
        _call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        mount = _call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=mount)
    finally:
        os.close(mount)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
