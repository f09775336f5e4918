"""What can be known to be wrong before any process is started: the mountpoint and FUSE itself.

The one idea: a mountpoint is looked up in mountinfo before it is touched. It may hold a mount that
hangs or died, and stat() of that would hang or mislead.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fusefs.client import ask_mount
from fusefs.errors import AccessDenied, ConfigError, FusefsError, ObjectNotFound
from fusefs.mount import kernel
from fusefs.store.base import Source

FUSE_DEVICE = Path("/dev/fuse")

_LINKS_MAX = 40
"""Linux: MAXSYMLINKS in <linux/namei.h>."""


def resolve_mountpoint(text: str) -> str:
    """The absolute path without symlinks, without ever touching what is mounted there.

    Raises FusefsError on a loop of links.
    """
    path = os.path.abspath(text)
    for _ in range(_LINKS_MAX):
        if kernel.find_mount(path) is not None:
            return path
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name)
        if kernel.find_mount(path) is not None or not os.path.islink(path):
            return path
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    raise FusefsError(f"{text} is a loop of symbolic links")


def prepare_mountpoint(mountpoint: str) -> None:
    """Make the folder, and detach the mounts of ours on it that have lost their daemon.

    For containers, which start again where one was killed. A mount that still answers stays, for
    `check_mountpoint` to refuse. Raises OSError.
    """
    row = kernel.find_mount(mountpoint)
    while row is not None and row.fstype == kernel.FSTYPE and ask_mount(mountpoint).dead:
        kernel.unmount(mountpoint, lazy=True)
        row = kernel.find_mount(mountpoint)
    if row is None:
        os.makedirs(mountpoint, exist_ok=True)


def check_mountpoint(mountpoint: str) -> None:
    """Return if something can be mounted on this path of `resolve_mountpoint`.

    Raises FusefsError with one sentence that says what to do.
    """
    row = kernel.find_mount(mountpoint)
    if row is not None:
        raise FusefsError(_already_mounted(row))
    try:
        with os.scandir(mountpoint) as entries:
            occupied = next(entries, None) is not None
    except FileNotFoundError as error:
        raise ObjectNotFound(
            f"the mountpoint {mountpoint} does not exist: make it with mkdir -p {mountpoint}"
        ) from error
    except NotADirectoryError as error:
        raise FusefsError(f"the mountpoint {mountpoint} is not a directory") from error
    except OSError as error:
        raise AccessDenied(
            f"the mountpoint {mountpoint} cannot be used: {error.strerror}"
        ) from error
    if occupied:
        raise FusefsError(f"the mountpoint {mountpoint} is not empty: a mount would hide its files")


def check_apart(source: Source, mountpoint: str) -> None:
    """Raise `ConfigError` for a mount inside its own source: listing would walk into itself."""
    if source.scheme == "file" and Path(mountpoint).is_relative_to(os.path.realpath(source.bucket)):
        raise ConfigError(
            f"the mountpoint {mountpoint} lies inside the source {source.text}: mount it elsewhere"
        )


def _already_mounted(row: kernel.MountRow) -> str:
    if not row.fstype.startswith("fuse"):
        return f"{row.mountpoint} is already a mount ({row.fstype}): mount on a folder inside it"
    unmount = "fusefs umount" if row.fstype == kernel.FSTYPE else "fusermount3 -u"
    if ask_mount(row.mountpoint).dead:
        return (
            f"{row.mountpoint} holds a mount that has lost its daemon (transport endpoint is not"
            f" connected): remove it with {unmount} {row.mountpoint}"
        )
    return (
        f"{row.mountpoint} is already a mount of {row.source}: end it with"
        f" {unmount} {row.mountpoint}"
    )


def check_fuse(is_root: bool, device: Path = FUSE_DEVICE) -> None:
    """Return if this machine lets us mount with FUSE. Raises FusefsError with one sentence.

    Root opens the device and mounts by itself; others need fusermount3, which is setuid.
    """
    if not is_root and shutil.which("fusermount3") is None:
        raise ObjectNotFound(
            "fusermount3 is not installed: install the package fuse3, or mount as root"
        )
    try:
        if is_root:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        else:
            device.lstat()
    except FileNotFoundError as error:
        raise ObjectNotFound(
            f"{device} is missing: load the module with modprobe fuse, or give the container"
            f" the device (--device {device})"
        ) from error
    except OSError as error:
        raise AccessDenied(
            f"{device} cannot be opened ({error.strerror}): a container needs the device"
            f" (--device {device}) and CAP_SYS_ADMIN"
        ) from error
