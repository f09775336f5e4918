"""The system calls and kernel files around a mount: mount(2), fusermount3, umount2, mountinfo.

Nothing here touches a path inside a mount: stat() of a FUSE root waits for its daemon.

As root, paths are held before they are used: whoever may rename a folder above the mountpoint could
put a symbolic link there between a look and a mount(2), and have us mount on /etc. A descriptor
stays with its folder, and the kernel tells which path that has (`_held`).
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusefs.errors import AccessDenied, FusefsError, ObjectNotFound

FSTYPE = "fuse.fusefs"

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME, _MS_REMOUNT = 1, 2, 4, 1024, 32
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_FUSERMOUNT_TIMEOUT_S = 30.0
_OCTAL = re.compile(r"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountRow:
    """One row of mountinfo. `device` is "major:minor"."""

    mountpoint: str
    device: str
    fstype: str
    source: str


def mount_rows(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[MountRow]:
    """All mounts of this mount namespace, oldest first."""
    rows = []
    for line in mountinfo.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        rows.append(MountRow(_unescape(fields[4]), fields[2], tail[0], _unescape(tail[1])))
    return rows


def device_mounts(mountinfo: Path, device: str) -> dict[int, str]:
    """Where one device is mounted, by the numbers that descriptors name their mounts with."""
    rows = (line.split(" ") for line in mountinfo.read_text(errors="surrogateescape").splitlines())
    return {int(row[0]): _unescape(row[4]) for row in rows if row[2] == device}


def find_mount(mountpoint: str) -> MountRow | None:
    """The topmost mount at exactly this path, or None."""
    found = [row for row in mount_rows() if row.mountpoint == mountpoint]
    return found[-1] if found else None


def _unescape(text: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def mount_fuse(source: str, mountpoint: str, allow_other: bool) -> int:
    """Mount and return the /dev/fuse descriptor. Raises FusefsError with one sentence.

    As root the mount is not read-only yet: `make_read_only` makes it so, once the hints' socket is
    bound in it. Until then the daemon refuses what the kernel would.
    """
    if os.geteuid() == 0:
        return _mount_as_root(source, mountpoint, allow_other)
    return _mount_by_fusermount(source, mountpoint, allow_other)


def mount_connections() -> None:
    """Make sure, as root, that the kernel's list of FUSE connections is there.

    systemd mounts it at boot; minimal systems and containers do not. Without it `max_background`
    cannot be set and a stuck connection cannot be aborted. Where /sys is read-only it stays away,
    and `tuning` says so.
    """
    if os.geteuid() == 0 and find_mount(str(_CONNECTIONS)) is None and _CONNECTIONS.is_dir():
        flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
        _libc.mount(b"fusectl", bytes(_CONNECTIONS), b"fusectl", flags, None)


def _mount_as_root(source: str, mountpoint: str, allow_other: bool) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AccessDenied(f"cannot open /dev/fuse: {error.strerror}") from error
    options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    options += ",default_permissions" + (",allow_other" if allow_other else "")
    try:
        with _held(mountpoint) as folder:
            _mount(source, folder, FSTYPE, _MS_NOSUID | _MS_NODEV | _MS_NOATIME, options)
    except OSError as error:
        os.close(fd)
        hint = " (CAP_SYS_ADMIN is needed)" if error.errno == errno.EPERM else ""
        raise AccessDenied(f"cannot mount on {mountpoint}: {error.strerror}{hint}") from error
    return fd


@contextmanager
def _held(path: str) -> Iterator[str]:
    """A path to the folder that has `path` now, and which stays its path whatever is renamed.

    Asks no file system but for the way there. Raises OSError if `path` leads through a link.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = f"/proc/self/fd/{fd}"
        if os.readlink(folder) != path:
            raise OSError(errno.ENOTDIR, "a symbolic link is on the way: name the path it leads to")
        yield folder
    finally:
        os.close(fd)


def _mount(source: str | None, target: str, fstype: str | None, flags: int, options: str) -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _umount2(target: str, flags: int) -> None:
    """umount2(2). Raises OSError."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_read_only(mountpoint: str) -> None:
    """Turn what `mount_fuse` mounted as root read-only. Raises FusefsError."""
    flags = _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    try:
        with _held(mountpoint) as root:
            _mount(None, root, None, flags, "")
    except OSError as error:
        raise FusefsError(f"cannot make {mountpoint} read-only: {error.strerror}") from error


def _mount_by_fusermount(source: str, mountpoint: str, allow_other: bool) -> int:
    fsname = source.replace("\\", "\\\\").replace(",", "\\,")
    options = f"ro,nosuid,nodev,noatime,default_permissions,subtype=fusefs,fsname={fsname}"
    options += ",allow_other" if allow_other else ""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", options, "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_FUSERMOUNT_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise ObjectNotFound(
                "fusermount3 is not installed; install the package fuse3, or mount as root"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise FusefsError("fusermount3 did not finish; look at the system log") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise AccessDenied(said[0] if said else f"fusermount3 failed ({done.returncode})")
        theirs.close()  # so that a descriptor which was not sent is not waited for
        return _receive_fd(ours)


def _receive_fd(channel: socket.socket) -> int:
    """The descriptor fusermount3 sends with one byte."""
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fd: int = array.array("i", data[:4])[0]
            os.set_inheritable(fd, False)
            return fd
    raise FusefsError("fusermount3 mounted but sent no descriptor")


def unmount(mountpoint: str, lazy: bool = False) -> None:
    """Unmount; raises OSError (EBUSY: in use, EINVAL: not mounted, EPERM)."""
    if os.geteuid() == 0:
        parent, name = os.path.split(mountpoint)
        with _held(parent) as folder:
            _umount2(f"{folder}/{name}", _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_FUSERMOUNT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        number = errno.EBUSY if "busy" in said else errno.EPERM
        raise OSError(number, said or f"fusermount3 failed ({done.returncode})")


def is_connected(fuse_fd: int) -> bool:
    """Whether the mount behind this descriptor still lives: neither unmounted nor aborted."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def requests_waiting(device: str) -> int | None:
    """How many requests of a connection have no answer yet; None where that cannot be seen."""
    try:
        return int((_CONNECTIONS / device.partition(":")[2] / "waiting").read_text())
    except (OSError, ValueError):
        return None


def abort_connection(device: str) -> None:
    """End a FUSE connection whatever state it is in: waiting readers get ENOTCONN. Root only."""
    minor = device.partition(":")[2]
    try:
        (_CONNECTIONS / minor / "abort").write_text("1")
    except (FileNotFoundError, PermissionError):
        return  # ended already, or not ours to end: the last close of the descriptor does it
