"""System calls that a process of ours never makes, refused by the kernel from now on.

A list of what is denied, not of what is allowed: SDKs, TLS and resolvers of every libc are nobody's
to enumerate, and a system call that is missing in a list would be a load that fails. What is denied
is what a stolen process would reach for next: other processes, namespaces and mounts, and parts of
the kernel that have been its weak places. The program looks at numbers alone (at the flags, for
clone), so the kernel answers from a bitmap, and a call costs 60 ns more (docs/decisions/0016).
Architectures without a row here go without.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

CLONE_NEW = 0x7E020000
"""CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID and -NET of <linux/sched.h>."""

NEVER: dict[str, tuple[int, int]] = {
    # other processes: their memory, their descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # any file of a file system by its number, which CAP_DAC_READ_SEARCH allows
    "open_by_handle_at": (304, 265),
    # large or sharp parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # the kernel itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
}
"""What no process of a mount needs: numbers on x86_64 and on aarch64."""

MOUNTING: dict[str, tuple[int, int]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
}
"""What the keeper needs, and the daemon before it has its arena; nobody else."""

ABSENT: dict[str, tuple[int, int]] = {
    "io_uring_setup": (425, 425),  # would go past this filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),  # its flags lie in memory, where no filter sees them; libc takes clone
}
"""Answered as an older kernel would, ENOSYS: their callers know another way."""

_CLONE = (56, 220)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""uname's machine: the column above, and AUDIT_ARCH_… of <linux/audit.h>."""

_X32_BIT = 0x40000000
"""x86_64 has every call a second time with this bit in its number."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Classic BPF: BPF_LD|W|ABS, BPF_JMP|JEQ|K, |JGE|K, |JSET|K, BPF_RET|K of <linux/filter.h>."""

_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
"""Offsets in struct seccomp_data; the lower half of an argument comes first on both."""

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
"""SECCOMP_RET_… of <linux/seccomp.h>."""

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_FILTER, _ALL_THREADS, _SPECULATION_ALLOWED = 1, 1, 4
"""Kernels before 5.16 would also slow the process down by a tenth, were the last not asked for."""

_INSTRUCTION = struct.Struct("=HBBI")

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def deny(mounting: bool) -> str | None:
    """Deny this process and its children `NEVER`, and `MOUNTING` too if so wished, for good.

    Takes no_new_privs. Returns why it could not be done, or None: an older kernel or a stricter
    container is no reason not to serve.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return f"no list of system calls for {machine}"
    column, architecture = _ARCHITECTURES[machine]
    refused = [*NEVER.values(), *(MOUNTING.values() if mounting else ())]
    program = _program(
        architecture,
        [numbers[column] for numbers in refused],
        [numbers[column] for numbers in ABSENT.values()],
        _CLONE[column],
        mounting,
    )
    wrapped = _Program(len(program) // _INSTRUCTION.size, program)
    flags = _ALL_THREADS | _SPECULATION_ALLOWED
    number = _SECCOMP[machine]
    if _libc.syscall(number, _SET_FILTER, flags, ctypes.byref(wrapped)) == 0:
        return None
    return f"seccomp: {os.strerror(ctypes.get_errno())}"


def _program(
    architecture: int, refused: list[int], absent: list[int], clone: int, namespaces: bool
) -> bytes:
    """The filter. Every jump is over the one `return` that follows it."""
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
        *_answer(_AT_LEAST, [_X32_BIT], errno.ENOSYS),
        *_answer(_EQUAL, absent, errno.ENOSYS),
        *_answer(_EQUAL, refused, errno.EPERM),
    ]
    if namespaces:
        lines += [
            (_EQUAL, 1, 0, clone),
            (_RETURN, 0, 0, _ALLOW),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            *_answer(_ANY_BIT, [CLONE_NEW], errno.EPERM),
        ]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def _answer(test: int, values: Iterable[int], error: int) -> list[tuple[int, int, int, int]]:
    """`error` for each of `values`."""
    lines = []
    for value in values:
        lines += [(test, 0, 1, value), (_RETURN, 0, 0, _ERRNO | error)]
    return lines
