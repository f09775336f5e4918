"""The plugin's system calls on mounts: bind, detach, count. Nothing here asks a FUSE file system.

The one idea: /proc/self/mountinfo is the truth about what is mounted where; nothing is counted or
remembered beside it. A path is looked up there before it is touched, since stat() of a mount whose
daemon is away waits for it.
"""

from __future__ import annotations

import ctypes
import os
import stat

from fusefs.errors import FusefsError
from fusefs.mount import kernel
from fusefs.mount.kernel import MountRow

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024
_MS_REMOUNT, _MS_BIND = 32, 4096
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOATIME

# ctypes lets go of the GIL for a call: one that blocks does not stop the server.
_libc = ctypes.CDLL(None, use_errno=True)


class TargetUnusable(FusefsError):
    """Something that is no directory stands where a volume is to appear."""


class TargetOccupied(FusefsError):
    """Another file system is mounted where a volume is to appear."""


def resolve(path: str) -> str:
    """The path as mountinfo has it: symlinks in its parents followed, itself not touched."""
    parent, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.path.realpath(parent), name)


def rows_at(path: str, rows: list[MountRow]) -> list[MountRow]:
    """What is mounted at exactly this path, the topmost last."""
    return [row for row in rows if row.mountpoint == path]


def make_target(path: str) -> None:
    """Have an unmounted directory at `path`. Raises TargetUnusable or OSError."""
    try:
        os.mkdir(path, 0o750)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise TargetUnusable(
                f"the target {path} exists and is no directory: remove it"
            ) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TargetUnusable(
            f"the target's parent {os.path.dirname(path)} is no directory"
        ) from error


def bind(source: str, target: str, read_only: bool) -> None:
    """Show the mount `source` at `target`, too. Raises OSError; then nothing is there."""
    _call_mount(source, target, _MS_BIND)
    if read_only:
        try:
            _call_mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _FLAGS)
        except OSError:
            detach(target)
            raise


def detach(path: str) -> None:
    """Take away all that is mounted at `path`, whether or not somebody uses it. Raises OSError."""
    while rows_at(path, kernel.mount_rows()):
        if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)


def remove_target(path: str) -> None:
    """Detach and remove what a publish made; that it is not there is fine. Raises OSError."""
    detach(path)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _call_mount(source: str | None, target: str, flags: int) -> None:
    first = None if source is None else os.fsencode(source)
    if _libc.mount(first, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
