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
import struct
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""Numbers of the system calls, the same on every architecture since Linux 5.2."""

_SET_STRING, _CMD_CREATE = 1, 6
"""enum fsconfig_command of <linux/mount.h>."""

_CLOEXEC = 1
"""FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC of <linux/mount.h>."""

_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1, 0x1000
_MOUNT_ATTR_RDONLY = 1
"""Of <linux/mount.h> and <fcntl.h>; mount_setattr takes a struct of four numbers: what to set, what
to clear, propagation, user namespace."""

_HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Two descriptors of the same memory.

    `fd` reads and writes. `read_only_fd` was opened through a mount that is read-only, so that who
    gets it cannot open it anew for writing, by /proc/self/fd, whatever its uid: a memfd, or a mode,
    does not stop root nor the same user. None where the kernel (before Linux 6.15) or our rights
    do not allow for it; then the memory is handed to nobody.
    """

    fd: int
    read_only_fd: int | None


def open_shared_memory(size: int) -> SharedMemory:
    """Open `size` bytes of zeros that nobody can open by a path."""
    try:
        memory = _open_on_tmpfs(size)
    except OSError:  # not permitted, or a kernel without one of these
        memory = SharedMemory(os.memfd_create("fusefs-arena", os.MFD_CLOEXEC), None)
    os.ftruncate(memory.fd, size)
    return memory


def map_shared_memory(fd: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """Map all of it."""
    memory = mmap.mmap(fd, 0, prot=prot)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _open_on_tmpfs(size: int) -> SharedMemory:
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
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=mount)
        return SharedMemory(fd, _open_read_only(fd))
    finally:
        os.close(mount)


def _open_read_only(fd: int) -> int | None:
    """The same file through a read-only clone of its mount, which must still be open."""
    try:
        clone = _call(_OPEN_TREE, fd, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    except OSError:  # a kernel that clones no mount that is mounted nowhere
        return None
    try:
        read_only = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        _call(_MOUNT_SETATTR, clone, b"", _AT_EMPTY_PATH, read_only, len(read_only))
        return os.open(f"/proc/self/fd/{clone}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc
        return None
    finally:
        os.close(clone)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
