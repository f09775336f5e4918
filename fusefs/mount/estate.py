"""What outlives the daemon of a mount, as one value that can be handed on.

Whoever holds an estate holds the mount up: requests wait for the next daemon instead of failing.
`send` and `receive` pass it over a SEQPACKET socket, with its descriptors. A keeper makes it (as
root with mount(2), else with fusermount3), or is given it by somebody who mounted and keeps a copy
(`python -m fusefs.mount.keeper --adopt`). It serves nothing and restarts nothing.

A holder of a copy closes it when the mount is taken from its place: the listening socket holds the
mount like an open file does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import stat
import struct
from dataclasses import dataclass, replace
from typing import Any

from fusefs.errors import FusefsError
from fusefs.mount import kernel

ESTATE_VERSION = 1
"""Changes with the meaning of a field, of the vitals, of the journal, or of inode numbers: a keeper
takes over what it understands, and refuses the rest with a sentence."""

INIT_TIMEOUT_S = 10.0
"""The kernel sends FUSE_INIT in the moment of the mount."""

_MESSAGE_BYTES_MAX = 65536
_READ_BYTES = 65536
"""Reads of /dev/fuse must have room for 8 KiB at least."""

_FUSE_DEVICE = (10, 229)
"""/dev/fuse (Documentation/admin-guide/devices.txt)."""

_FLAGS2_AT = 40 + 16
"""In a FUSE_INIT request: after fuse_in_header (40 bytes) and major, minor, max_readahead and flags
of fuse_init_in, <linux/fuse.h>. A short one, of old kernels, has no flags2."""

_HAS_RESEND = 1 << 7
"""FUSE_HAS_RESEND, bit 39 of all flags: the kernel knows FUSE_NOTIFY_RESEND (Linux 6.9)."""

WITHOUT_RESEND = "_FUSEFS_WITHOUT_RESEND"
"""An environment variable of tests: be as on a kernel before 6.9."""


@dataclass(frozen=True, slots=True)
class Estate:
    """All that it takes to serve a mount that is there already.

    `fuse_fd` is the connection, `init_request` the one FUSE_INIT that the kernel sent on it,
    `device` the mount's "major:minor", `memory_fd` the vitals and the journal, `listener_fd` the
    hints' listening socket, or None with the reason in `no_listener` (empty: not bound yet).
    """

    fuse_fd: int
    init_request: bytes
    device: str
    memory_fd: int
    listener_fd: int | None = None
    no_listener: str = ""

    @property
    def can_resend(self) -> bool:
        """Whether the kernel sends requests again that a dead daemon had taken."""
        if WITHOUT_RESEND in os.environ or len(self.init_request) < _FLAGS2_AT + 4:
            return False
        flags2: int = struct.unpack_from("=I", self.init_request, _FLAGS2_AT)[0]
        return bool(flags2 & _HAS_RESEND)

    @property
    def is_finished(self) -> bool:
        """Whether the hints' socket was bound, or it is known why it was not."""
        return self.listener_fd is not None or bool(self.no_listener)

    def send(self, channel: socket.socket) -> None:
        """Give a copy to whoever reads at the other end. Raises OSError."""
        message = {
            "estate": ESTATE_VERSION,
            "init": self.init_request.hex(),
            "device": self.device,
            "listener": self.listener_fd is not None,
            "why": self.no_listener,
        }
        fds = [self.fuse_fd, self.memory_fd]
        if self.listener_fd is not None:
            fds.append(self.listener_fd)
        socket.send_fds(channel, [json.dumps(message).encode()], fds)

    @staticmethod
    def receive(channel: socket.socket) -> Estate:
        """Take what `send` gave. Raises FusefsError with one sentence if it is not for us."""
        data, fds, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES_MAX, 3)
        try:
            return _from_message(json.loads(data or b"null"), fds)
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            close_all(fds)
            raise FusefsError("what was sent is not the estate of a mount") from error
        except FusefsError:
            close_all(fds)
            raise

    def check_kind(self) -> None:
        """See that the descriptors are of the kinds they should be; for an estate of a stranger.

        Others could make a holder wait for whoever serves them. Raises FusefsError.
        """
        device = os.fstat(self.fuse_fd)
        try:
            fcntl.fcntl(self.memory_fd, fcntl.F_GET_SEALS)  # fails where it is not plain memory
        except OSError as error:
            raise FusefsError("what was sent as a mount's memory is something else") from error
        if not stat.S_ISCHR(device.st_mode) or device.st_rdev != os.makedev(*_FUSE_DEVICE):
            raise FusefsError("what was sent as a mount's connection is something else")

    def with_listener(self, listener_fd: int | None, why: str) -> Estate:
        """The same with another listening socket, or with the reason for none."""
        return replace(self, listener_fd=listener_fd, no_listener=why)

    def close(self) -> None:
        """Let go of this copy."""
        fds = (self.fuse_fd, self.memory_fd, self.listener_fd)
        close_all([fd for fd in fds if fd is not None])


def _from_message(message: dict[str, Any], fds: list[int]) -> Estate:
    if message["estate"] != ESTATE_VERSION:
        raise FusefsError(
            f"this mount's estate has version {message['estate']}, and this fusefs takes over"
            f" version {ESTATE_VERSION} only: unmount, and mount anew"
        )
    if len(fds) != 2 + message["listener"]:
        raise ValueError("descriptors are missing")
    for fd in fds:
        os.set_inheritable(fd, False)
    return Estate(
        fds[0],
        bytes.fromhex(message["init"]),
        message["device"],
        fds[1],
        fds[2] if message["listener"] else None,
        message["why"],
    )


def open_estate(source: str, mountpoint: str, allow_other: bool, memory_fd: int) -> Estate:
    """Mount, and take the kernel's FUSE_INIT. Raises FusefsError; then nothing stays mounted.

    `memory_fd` is of `fusefs.mount.vitals.open_memory`, and is the estate's from then on.
    """
    kernel.mount_connections()
    fuse_fd = kernel.mount_fuse(source, mountpoint, allow_other)
    try:
        init_request = _take_init(fuse_fd)
        device = _device_of(mountpoint)
    except (FusefsError, OSError):
        os.close(fuse_fd)
        with contextlib.suppress(OSError):  # unmounted already
            kernel.unmount(mountpoint, lazy=True)
        raise
    return Estate(fuse_fd, init_request, device, memory_fd)


def _take_init(fuse_fd: int) -> bytes:
    ready, _, _ = select.select([fuse_fd], [], [], INIT_TIMEOUT_S)
    if not ready:
        raise FusefsError("the kernel does not begin to talk to the new mount")
    return os.read(fuse_fd, _READ_BYTES)


def _device_of(mountpoint: str) -> str:
    row = kernel.find_mount(mountpoint)
    if row is None:
        raise FusefsError(f"{mountpoint} was unmounted at once by somebody else")
    return row.device


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
