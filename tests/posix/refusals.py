"""Every system call that changes something, on everything it can be aimed at: which errno comes.

    python -m tests.posix.refusals ROOT [UID]

In the manner of pjdfstest, whose own EROFS tests do nothing on Linux. Prints one JSON object, "call
on target" -> errno's name, "ok" where a call is no change after all. A process of its own, since
whoever makes calls on a mount may have to be killed; as user UID, if that is given.

ROOT holds what `make_tree` makes. Nothing below it may be writable:
what is measured is by which errno it is refused. The one idea: the table is run on a read-only bind
mount of such a tree and on a mount of fusefs, and the answers are laid side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

NAME_TOO_LONG = "n" * 256
PATH_TOO_LONG = "/".join(["p" * 200] * 21)

TARGETS = {
    "a file": "file",
    "a directory": "dir",
    "a full directory": "dir",
    "an empty directory": "empty",
    "an absent name": "absent",
    "below an absent name": "absent/name",
    "below a file": "file/name",
    "a file with a slash": "file/",
    "an absent name with a slash": "absent/",
    "a long name": NAME_TOO_LONG,
    "below a long name": f"{NAME_TOO_LONG}/name",
    "a long path": PATH_TOO_LONG,
    "nothing": "",
    "dot": "dir/.",
    "dot dot": "dir/..",
    "the root": ".",
    "the hints' folder": ".fusefs",
    "the hints' folder of a directory": "dir/.fusefs",
    "the hints' socket": ".fusefs/socket",
    "an absent name in the hints' folder": ".fusefs/absent",
}

LINKS = {"a link to a file": "link", "a loop of links": "loop"}
"""A mount has no symbolic links: see docs/semantics.md."""

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD, AT_REMOVEDIR, _AT_SYMLINK_NOFOLLOW = -100, 0x200, 0x100
FS_IOC_SETFLAGS = 0x40086602
SYS_FCHMODAT2 = 452
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _renameat2(one: str, other: str, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), flags))


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


@contextlib.contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _by_fd(call: Callable[[int], object], flags: int = os.O_RDONLY) -> Callable[[str], None]:
    """The call on a descriptor that is open for reading."""

    def make(path: str) -> None:
        with _opened(path, flags) as fd:
            call(fd)

    return make


def _map_shared(fd: int) -> None:
    mmap.mmap(fd, 4, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()


def _set_flags(fd: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", 0))


def _bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def _lchmod(path: str) -> None:
    _checked(_libc.syscall(SYS_FCHMODAT2, AT_FDCWD, path.encode(), 0o777, _AT_SYMLINK_NOFOLLOW))


OPENS = {
    name: (lambda path, flags=flags: _open(path, flags))
    for name, flags in {
        "open to write": os.O_WRONLY,
        "open to read and write": os.O_RDWR,
        "open to truncate": os.O_RDONLY | os.O_TRUNC,
        "open to append": os.O_WRONLY | os.O_APPEND,
        "open to create": os.O_WRONLY | os.O_CREAT,
        "open to create and read": os.O_RDONLY | os.O_CREAT,
        "open to create anew": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        "open a directory to write": os.O_WRONLY | os.O_DIRECTORY,
        "open without a link to write": os.O_WRONLY | os.O_NOFOLLOW,
        "open a nameless file": os.O_RDWR | os.O_TMPFILE,
        "open directly to write": os.O_WRONLY | os.O_DIRECT,
        "open to read": os.O_RDONLY,
        "open a directory": os.O_RDONLY | os.O_DIRECTORY,
        "open as a place": os.O_PATH,
    }.items()
}

CALLS: dict[str, Callable[[str], object]] = {
    **OPENS,
    "creat": lambda path: os.close(_checked(_libc.creat(path.encode(), 0o644))),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "unlinkat a directory": lambda path: _checked(
        _libc.unlinkat(AT_FDCWD, path.encode(), AT_REMOVEDIR)
    ),
    "rename it": lambda path: os.rename(path, "new"),
    "rename onto it": lambda path: os.rename("other", path),
    "rename it to itself": lambda path: os.rename(path, path),
    "rename a directory onto it": lambda path: os.rename("empty", path),
    "rename it into itself": lambda path: os.rename(path, f"{path}/inside"),
    "rename it to an absent name": lambda path: _renameat2(path, "new", RENAME_NOREPLACE),
    "rename onto it if absent": lambda path: _renameat2("other", path, RENAME_NOREPLACE),
    "exchange it": lambda path: _renameat2("other", path, RENAME_EXCHANGE),
    "link it": lambda path: os.link(path, "new"),
    "link to it": lambda path: os.link("other", path),
    "symlink": lambda path: os.symlink("other", path),
    "mkfifo": os.mkfifo,
    "mknod of a file": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "mknod of a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "mknod of a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "bind": _bind,
    "chmod": lambda path: os.chmod(path, 0o777),
    "chmod without a link": _lchmod,
    "fchmod": _by_fd(lambda fd: os.fchmod(fd, 0o777)),
    "chown": lambda path: os.chown(path, 1, 1),
    "chown to the same": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.lchown(path, 1, 1),
    "fchown": _by_fd(lambda fd: os.fchown(fd, 1, 1)),
    "truncate": lambda path: os.truncate(path, 0),
    "truncate to more": lambda path: os.truncate(path, 1 << 20),
    "ftruncate": _by_fd(lambda fd: os.ftruncate(fd, 0)),
    "utime": os.utime,
    "utime without a link": lambda path: os.utime(path, follow_symlinks=False),
    "futime": _by_fd(os.utime),
    "write": _by_fd(lambda fd: os.write(fd, b"x")),
    "pwrite": _by_fd(lambda fd: os.pwrite(fd, b"x", 0)),
    "fallocate": _by_fd(lambda fd: os.posix_fallocate(fd, 0, 4)),
    "map shared to write": _by_fd(_map_shared),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
    "setxattr of a verb": lambda path: os.setxattr(path, "user.fusefs.stats", b"1"),
    "setxattr of trusted": lambda path: os.setxattr(path, "trusted.x", b"1"),
    "fsetxattr": _by_fd(lambda fd: os.setxattr(fd, "user.x", b"1")),
    "removexattr": lambda path: os.removexattr(path, "user.x"),
    "set flags": _by_fd(_set_flags),
    "fsync": _by_fd(os.fsync),
    "access to write": lambda path: _checked(_libc.access(path.encode(), os.W_OK)),
    "access to read": lambda path: _checked(_libc.access(path.encode(), os.R_OK)),
    "stat": os.stat,
    "readlink": os.readlink,
    "list": os.listdir,
    "chdir": _by_fd(os.fchdir, os.O_RDONLY | os.O_DIRECTORY),
}


def errno_of(call: Callable[[str], object], path: str) -> str:
    """The name of what comes of it: an errno's, or "ok"."""
    try:
        call(path)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    except ValueError as error:  # mmap's own, for files that are too short
        return type(error).__name__
    return "ok"


def run(root: str, targets: dict[str, str]) -> dict[str, str]:
    """All calls on all targets below `root`."""
    found = {}
    for what, path in targets.items():
        for name, call in CALLS.items():
            os.chdir(root)
            found[f"{name} on {what}"] = errno_of(call, path)
    return found


def make_tree(root: Path) -> None:
    """Files, directories, links, and sockets where a mount has its own.

    Everybody may write everything: that modes refuse comes after that the mount does.
    """
    (root / "dir").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("file", "other", "dir/inner"):
        (root / name).write_bytes(b"four")
    (root / "link").symlink_to("file")
    (root / "loop").symlink_to("loop")
    for folder in (root / ".fusefs", root / "dir" / ".fusefs"):
        folder.mkdir()
        _bind(str(folder / "socket"))
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)


def main(root: str, uid: str = "0") -> None:
    """Run the table as user `uid`."""
    if uid != "0":
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    print(json.dumps(run(root, {**TARGETS, **LINKS})))


if __name__ == "__main__":
    main(*sys.argv[1:])
