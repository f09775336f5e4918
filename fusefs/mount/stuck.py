"""Requests that a dead daemon took with it, on kernels that do not send them again (before 6.9).

They can never be answered, and whoever made them waits where no signal reaches. Nothing but the end
of the connection frees them. The one idea: a request is queued, in our hands, or stuck; with none
queued, what the kernel counts beyond what we hold is stuck. It starts and replaces nothing.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable

import trio

from fusefs.mount import kernel

log = logging.getLogger("fusefs.daemon")

SAMPLE_S = 0.2
SAMPLES = 5
"""In a row: the kernel counts a request a moment before it queues it, and after it is answered."""

MAX_BACKGROUND_MIN = 12
"""The kernel's own max_background. Past it requests wait uncounted by poll(2); below it, they would
only while others are stuck."""


async def end_stuck_requests(device: str, fuse_fd: int, held: Callable[[], int]) -> None:
    """Look once whether there are any; abort the connection if so. Needs fusectl.

    `held` is how many requests are in our hands now. To be started when a daemon takes over.
    """
    seen = 0
    while seen < SAMPLES:
        await trio.sleep(SAMPLE_S)
        waiting = kernel.requests_waiting(device)
        if waiting is None:
            return  # the keeper has seen to it that nothing could be lost
        excess = waiting - held()
        if excess <= 0:
            return
        # Nothing is awaited between these looks, so they are of one moment of ours.
        is_clear = held() < MAX_BACKGROUND_MIN and not _has_queued(fuse_fd)
        seen = seen + 1 if is_clear else 0
    log.error(
        "%d requests were lost with the daemon before this one, and this kernel (before 6.9) does"
        " not send them again: the mount is aborted, so that nobody hangs",
        excess,
    )
    kernel.abort_connection(device)


def _has_queued(fuse_fd: int) -> bool:
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    return bool(poll.poll(0))
