"""What the keeper says to a daemon: JSON with descriptors, as the daemon receives it.

The keeper's end is `fusefs.mount.generation`.
"""

from __future__ import annotations

import array
import os
import socket

import trio

from fusefs.engine import jobs

FDS_MAX = 2
"""The connection, and the hints' listening socket."""


async def receive(keeper: trio.socket.SocketType) -> tuple[jobs.Message, list[int]]:
    """What the keeper says, nothing if it gave up, and the descriptors that come with it."""
    data, ancillary, _, _ = await keeper.recvmsg(65536, socket.CMSG_SPACE(FDS_MAX * 4))
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return (jobs.decode(data) if data else {}), list(fds)
