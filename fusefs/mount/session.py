"""libfuse's session on a connection whose FUSE_INIT was read by somebody else.

The kernel says FUSE_INIT once, and libfuse serves nothing before it has heard it. So each daemon
hears it on a socket that stands in for the connection; and inside libfuse's handler, before its
answer is written, the connection takes the socket's place. That answer the kernel has had before:
it says so, and libfuse does not mind. What libfuse would answer is found out in a rehearsal, on a
socket alone, so that the keeper can compare before anything is taken over.

At most one session may read a connection: two would steal requests from each other and block.
"""

from __future__ import annotations

import os
import socket
import struct

import pyfuse3
import trio

_MESSAGE_BYTES_MAX = 65536

_NOTIFY_RESEND = struct.pack("=IiQ", 16, 7, 0)
"""fuse_out_header of <linux/fuse.h>: length, FUSE_NOTIFY_RESEND in place of an error, no request.
"""


class Session:
    """One daemon's session. `on_init` is to be called by `pyfuse3.Operations.init`.

    The mutable state of Session is the connection, None until `open`, and the two ends of the
    socket that stands in for it.
    """

    def __init__(self, operations: pyfuse3.Operations) -> None:
        self._operations = operations
        self._fuse_fd: int | None = None
        self._ours: socket.socket | None = None
        self._stand_in = -1

    async def rehearse(self, init_request: bytes) -> bytes:
        """What libfuse answers to this FUSE_INIT."""
        ours = self._stand_in_for(init_request)
        with ours:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                await trio.lowlevel.wait_readable(ours)
                reply = ours.recv(_MESSAGE_BYTES_MAX)
                pyfuse3.terminate()
        pyfuse3.close(unmount=False)
        return reply

    def open(self, init_request: bytes, fuse_fd: int, resend: bool) -> None:
        """Be ready to serve the connection: `pyfuse3.main` begins. The one before us is dead.

        `resend`: what that one had in hand, the kernel sends again.
        """
        if resend:
            os.write(fuse_fd, _NOTIFY_RESEND)
        self._fuse_fd = fuse_fd
        self._ours = self._stand_in_for(init_request)

    def on_init(self) -> None:
        """Inside libfuse's handler of FUSE_INIT."""
        if self._fuse_fd is not None and self._ours is not None:
            os.dup2(self._fuse_fd, self._stand_in, inheritable=False)
            self._ours.close()
            self._ours = None

    def _stand_in_for(self, init_request: bytes) -> socket.socket:
        """A session on a socket that says this FUSE_INIT; returns the socket's other end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(init_request)
        self._stand_in = theirs.detach()  # the session's from here on
        pyfuse3.init(self._operations, f"/dev/fd/{self._stand_in}", set())
        return ours
