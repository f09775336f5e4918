"""What each process of a mount may do from now on, once it has what it needed more for.

The one idea: a table of roles, and `settle` that a process calls while it has one thread, since the
kernel keeps capabilities for each thread. What is given up is given up for its children, too
(no_new_privs). The user id stays: credentials, logs and sources belong to whoever mounts, and what
root may do with root's own files it still may. Those who want that away mount as another user.

Nothing here raises: a kernel or a container that does not let us give up more has given us less
already.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass

from fusefs.engine import seccomp

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
"""Of <linux/prctl.h>."""

_CAPABILITY_VERSION_3 = 0x20080522

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETPCAP, CAP_SYS_ADMIN = 1, 2, 8, 21
"""Of <linux/capability.h>."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Role:
    """What a process keeps of the capabilities it has.

    `may_mount` keeps the system calls of mounting, and, without root, what a setuid program
    (fusermount3) needs: that it gets its owner's rights.
    """

    capabilities: frozenset[int] = frozenset()
    may_mount: bool = False


KEEPER = Role(
    frozenset({CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETPCAP}), may_mount=True
)
"""Mounts, unmounts, binds the hints' socket in a folder nobody may write to, and starts daemons.
Those open the log, need CAP_SYS_ADMIN for their arena (`fusefs.engine.shared_memory`) and
CAP_SETPCAP to give up the rest."""

SERVER = Role(frozenset({CAP_DAC_READ_SEARCH}))
"""Daemon, spawner, workers: the sources, the credentials and even the code of a mount by root may
lie in folders of other users, as a virtual environment in a home does. The kernel's knobs are files
of root's."""

PUSHER = Role()
"""Writes to two descriptors that it has."""


def settle(role: Role) -> list[str]:
    """Give up all but `role`, for good. Returns what could not be done, a phrase each."""
    hide_memory()
    _drop_bounding(role.capabilities)
    _keep_capabilities(sum(1 << capability for capability in role.capabilities))
    if role.may_mount and os.geteuid() != 0:
        return []  # fusermount3 unmounts with the rights its owner gives it
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refused = seccomp.deny(mounting=not role.may_mount)
    return [refused] if refused else []


def hide_memory() -> None:
    """No core files, and no looks into our memory by others of the same user: secrets are in it.

    Whoever has CAP_SYS_PTRACE or CAP_SYS_ADMIN (py-spy as root) still looks. exec(2) undoes it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _drop_bounding(keep: frozenset[int]) -> None:
    """Without CAP_SETPCAP this does nothing; no_new_privs holds alone then."""
    capability = 0
    while (present := _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0:
        if present and capability not in keep:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        capability += 1  # the kernel says EINVAL of the first that it does not know


class _Header(ctypes.Structure):
    """`struct __user_cap_header_struct` of linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    """`struct __user_cap_data_struct`: 32 capabilities of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _keep_capabilities(kept: int) -> None:
    """Take away what is not in `kept`; what is ambient goes along with what is inheritable."""
    header, halves = _Header(_CAPABILITY_VERSION_3, 0), (_Half * 2)()
    _libc.capget(ctypes.byref(header), halves)
    for half, shift in zip(halves, (0, 32), strict=True):
        half.permitted &= kept >> shift & 0xFFFFFFFF
        half.effective = half.permitted
        half.inheritable &= half.permitted
    _libc.capset(ctypes.byref(header), halves)
