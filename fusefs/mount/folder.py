"""`.fusefs` in every directory, and the socket in it: names that no listing shows.

The kernel joins both ends of a socket by its inode, so one socket answers in every directory, and a
container that was given a sub-directory finds it. Its node is made by MKNOD: while the keeper's
child binds it, and by nobody else. The one idea: a folder's inode is its directory's with the top
bit set, which no other inode has; so nothing has to be remembered of it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Any

from loaderhint.protocol import SOCKET_FOLDER, SOCKET_NAME

FOLDER_BIT = 1 << 63
"""The inodes of the tree use 63 bits."""

SOCKET_INODE = 2
"""No object's: those begin at `fusefs.tree.inodes.LOWEST_INODE`."""

FOLDER = SOCKET_FOLDER.encode()
SOCKET = SOCKET_NAME.encode()


@dataclass(frozen=True, slots=True)
class Node:
    """What stat(2) shows of a folder or the socket."""

    inode: int
    mode: int


class HintFolder:
    """Whether the socket is there, and the nodes that lead to it.

    The mutable state of HintFolder is whether the node was made, and why nobody listens, if so.
    INVARIANT: the node is made once, and only before `sealed`.
    """

    def __init__(self, umask: int) -> None:
        readable = 0o444 & ~umask
        self._folder_mode = stat.S_IFDIR | (0o555 & ~umask)
        self._socket_mode = stat.S_IFSOCK | readable | readable >> 1
        """Who may read files may connect, which takes write permission (unix(7))."""
        self._sealed = False
        self._made = False
        self._refused: str | None = "the mount is starting"

    def find(self, inode: int) -> Node | None:
        """The node with this inode, if it is one of ours."""
        if inode & FOLDER_BIT:
            return Node(inode, self._folder_mode)
        return Node(SOCKET_INODE, self._socket_mode) if inode == SOCKET_INODE else None

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The folder in a directory, or the socket in a folder; None if there is no such thing."""
        if parent & FOLDER_BIT:
            return self.find(SOCKET_INODE) if self._made and name == SOCKET else None
        return self.find(parent | FOLDER_BIT) if name == FOLDER else None

    def make(self, parent: int, name: bytes, mode: int) -> Node | None:
        """MKNOD: the socket, while it is bound; None for whatever else."""
        if self._sealed or self._made or not parent & FOLDER_BIT:
            return None
        if name != SOCKET or not stat.S_ISSOCK(mode):
            return None
        self._made = True
        return self.find(SOCKET_INODE)

    def seal(self, refused: str | None) -> None:
        """No node is made from now on; `refused` says why nobody listens, if so.

        Else the node was made, by us or for the daemon before us.
        """
        self._sealed = True
        self._refused = refused
        self._made = refused is None

    def describe(self) -> dict[str, Any]:
        """The answer to `user.fusefs.socket`: where to connect, or why one cannot."""
        path = f"{SOCKET_FOLDER}/{SOCKET_NAME}" if self._refused is None else None
        return {"socket": path, "why": self._refused}
