"""Starting a process of ours with a socket to it. What prevents that is one sentence, and passes.

Limits of processes, threads, descriptors and memory are met here, at the start of a mount or when
something died in the middle of a load; so the failure is a FusefsError for the caller to judge.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

import trio

from fusefs.errors import CannotStart


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel. Raises CannotStart."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise CannotStart(os.strerror(error.errno or 0)) from error


async def start_module(
    module: str, fds: Sequence[int], *arguments: str
) -> tuple[socket.socket, trio.Process]:
    """Run `python -m module CHANNEL_FD FDS... ARGUMENTS...`: our end of the channel, the process.

    Raises CannotStart.
    """
    ours, theirs = channel_pair()
    with theirs:
        inherited = (theirs.fileno(), *fds)
        command = [sys.executable, "-m", module, *map(str, inherited), *arguments]
        try:
            return ours, await trio.lowlevel.open_process(command, pass_fds=inherited)
        except OSError as error:
            ours.close()
            raise CannotStart(os.strerror(error.errno or 0)) from error
        except RuntimeError as error:  # no thread to start it in
            ours.close()
            raise CannotStart(str(error)) from error
