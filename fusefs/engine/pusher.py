"""The process that writes pages from the arena into the kernel's page cache, by NOTIFY_STORE.

Run as `python -m fusefs.engine.pusher CHANNEL_FD FUSE_FD ARENA_FD THREADS`. Its one idea: it is a
process nobody waits for. A push waits in the kernel, unkillable, for pages that a READ under way
holds locked; so neither the daemon, which answers READs, nor a worker, whose bytes a READ may need,
ever pushes. It has no network and no credentials, and ends when its channel does.

It writes through a device file of its own. A push that waits cannot be killed and keeps its file
open; were that the daemon's, then the kernel, when all processes are killed at once (a container's
end), would not learn that nobody is left to answer the READ which the push waits for.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys
import threading

from fusefs.engine import jobs
from fusefs.engine.machine import name_process
from fusefs.engine.privileges import PUSHER, settle
from fusefs.engine.shared_memory import map_shared_memory

_HEADER = struct.Struct("<IiQQQII")
"""fuse_out_header (len, error = the notification's code, unique = 0) and fuse_notify_store_out
(nodeid, offset, size, padding), of <linux/fuse.h>."""

_NOTIFY_STORE = 4

_DEV_IOC_CLONE = 0x8004E500
"""FUSE_DEV_IOC_CLONE of <linux/fuse.h>: _IOR(229, 0, uint32_t)."""


class Pusher:
    """Threads that take pushes from one socket. Immutable after construction."""

    def __init__(self, channel: socket.socket, fuse_fd: int, arena_fd: int) -> None:
        self._channel = channel
        self._fuse_fd = fuse_fd
        self._arena = memoryview(map_shared_memory(arena_fd, mmap.PROT_READ))

    def run(self, threads: int) -> None:
        """Push until the daemon closes its end of the socket."""
        with contextlib.suppress(RuntimeError):  # a limit of threads: fewer will do
            for number in range(threads - 1):
                threading.Thread(target=self._serve, name=f"push-{number}", daemon=True).start()
        self._serve()

    def _serve(self) -> None:
        while True:
            data = self._channel.recv(jobs.MESSAGE_BYTES_MAX)
            if not data:
                os._exit(0)  # another thread may be inside a push
            message = jobs.decode(data)
            answer = {"id": message["id"], "errno": self._push(message)}
            try:
                self._channel.send(jobs.encode(answer))
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # the daemon is gone

    def _push(self, message: jobs.Message) -> int:
        """Write one extent of one inode; 0, or the errno that the kernel gave."""
        at, size = message["at"], message["size"]
        header = _HEADER.pack(
            _HEADER.size + size, _NOTIFY_STORE, 0, message["inode"], message["start"], size, 0
        )
        try:
            os.writev(self._fuse_fd, [header, self._arena[at : at + size]])
        except OSError as error:
            return error.errno or -1
        return 0


def own_device(fuse_fd: int) -> int:
    """Another device file of the connection behind `fuse_fd`, which is closed.

    Where /dev/fuse may not be opened, that is `fuse_fd` itself.
    """
    with contextlib.suppress(OSError):
        own = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(own, _DEV_IOC_CLONE, struct.pack("I", fuse_fd))
        except OSError:
            os.close(own)
            raise
        os.close(fuse_fd)
        return own
    return fuse_fd


def main(channel_fd: int, fuse_fd: int, arena_fd: int, threads: int) -> None:
    """Serve one mount."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's to act on
    name_process("fusefs-push")
    device = own_device(fuse_fd)
    settle(PUSHER)
    Pusher(socket.socket(fileno=channel_fd), device, arena_fd).run(threads)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
