"""The keeper's child that touches the new mount: python probe.py MOUNTPOINT [CHANNEL_FD].

Asks the mount a question, and binds the hints' socket below it: if that hangs, it is the child that
hangs. The socket is sent on CHANNEL_FD, or the reason why there is none. Standard
library only and nothing of fusefs: it runs without the site, in some 20 ms.

The socket is bound through a detached clone of the mount, so that a plain umount is not busy. All
is done through a descriptor of the mount: who renames folders above it cannot lead us elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys

OPEN_TREE = 428
"""Number of the system call, the same on every architecture since Linux 5.2."""

AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1

_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

BACKLOG = 64
"""Connections that wait to be taken: as many as are served at once."""


def bind_socket(root_fd: int) -> socket.socket:
    """The listening socket `.fusefs/socket` of the mount. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC
    clone = libc.syscall(OPEN_TREE, root_fd, b"", flags)
    if clone < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"open_tree: {os.strerror(number)}")
    try:
        # Not as one path: a daemon of somebody else could answer with a link to anywhere.
        folder = os.open(".fusefs", _FOLDER_FLAGS, dir_fd=clone)
    finally:
        os.close(clone)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{folder}/socket")
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def take_socket(channel: socket.socket) -> tuple[int | None, str]:
    """For the keeper: the listening socket that the child sent, or the reason why there is none."""
    data, fds, _, _ = socket.recv_fds(channel, 65536, 1)
    if not fds:
        return None, str(json.loads(data)["why"])
    os.set_inheritable(fds[0], False)
    return fds[0], ""


def main(mountpoint: str, channel_fd: int | None) -> int:
    """Exit status 0 if the mount answers, whether or not there is a socket."""
    root_fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    root = f"/proc/self/fd/{root_fd}"
    if os.readlink(root) != mountpoint:
        return 1
    os.getxattr(root, "user.fusefs.stats")
    if channel_fd is None:
        return 0
    channel = socket.socket(fileno=channel_fd)
    try:
        listener = bind_socket(root_fd)
    except OSError as error:
        channel.send(json.dumps({"socket": False, "why": f"binding it failed: {error}"}).encode())
        return 0
    socket.send_fds(channel, [json.dumps({"socket": True}).encode()], [listener.fileno()])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))
