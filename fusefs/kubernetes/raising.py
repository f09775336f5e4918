"""Raising one source mount: mount(2), the kernel's knobs, the hints' socket, and the way down.

The privileged half of what a keeper does (`fusefs.mount.keeper`), for a daemon in another
container. Two calls here reach into a mount, `mount` for its first request and `finish` for the
socket; both are answered by a daemon that just said it serves, and whatever hangs is aborted.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

from fusefs.config import config_from_json_dict
from fusefs.errors import FusefsError, InternalError
from fusefs.kubernetes import mounts
from fusefs.kubernetes.records import Record
from fusefs.mount import kernel
from fusefs.mount.estate import Estate, open_estate
from fusefs.mount.probe import bind_socket
from fusefs.mount.tuning import HEAD_READ_AHEAD_KB, tune
from fusefs.mount.vitals import open_memory

log = logging.getLogger("fusefs.kubernetes")

SOCKET_TIMEOUT_S = 10.0
"""A daemon answers MKNOD in milliseconds; the rest is for a busy machine."""


class Raiser:
    """Raises and takes down. Stateless."""

    def mount(self, record: Record, mountpoint: str) -> Estate:
        """Mount, and keep what its daemons need. Raises InternalError."""
        Path(mountpoint).mkdir(exist_ok=True)
        memory_fd = open_memory()
        try:
            return open_estate(record.source, mountpoint, True, memory_fd)
        except FusefsError as error:
            os.close(memory_fd)
            # A refusal by this node, not by the store: no code of the store's fits.
            raise InternalError(f"{error}: is the plugin privileged?") from error

    def finish(self, record: Record, mountpoint: str, estate: Estate) -> Estate:
        """Set the kernel's knobs, bind the hints' socket, make the mount read-only.

        Returns the estate with the socket. Raises FusefsError.
        """
        config = config_from_json_dict(record.config)
        # By kind of file the daemon cannot change it: /sys is not its own. Shards are most.
        window = min(config.kernel.read_ahead_kb, HEAD_READ_AHEAD_KB)
        tune(replace(config.kernel, read_ahead_kb=window), estate.device)
        bound: list[Estate] = []

        def bind_listener() -> None:
            try:
                bound.append(estate.with_listener(_bind(mountpoint), ""))
            except OSError as error:
                log.warning("the mount %s has no socket for hints: %s", record.key, error)
                bound.append(estate.with_listener(None, f"binding it failed: {error}"))

        thread = threading.Thread(target=bind_listener, name="bind", daemon=True)
        thread.start()
        thread.join(SOCKET_TIMEOUT_S)
        if not bound:
            kernel.abort_connection(estate.device)  # which frees the thread
            raise InternalError("the mount does not answer; see the mounter's log")
        kernel.make_read_only(mountpoint)
        return bound[0]

    def take_down(self, mountpoint: str, estate: Estate | None) -> None:
        """Unmount, whatever state it is in, and let go of what was kept; waits for no daemon."""
        try:
            rows = mounts.rows_at(mountpoint, kernel.mount_rows())
            if estate is not None and rows and rows[-1].device == estate.device:
                # While it is mounted: afterwards its number may be another's.
                kernel.abort_connection(estate.device)
            mounts.detach(mountpoint)
            if estate is not None:
                estate.close()
            if os.path.isdir(mountpoint):
                os.rmdir(mountpoint)
        except OSError as error:
            log.warning("cannot take down %s: %s", mountpoint, error.strerror)


def _bind(mountpoint: str) -> int:
    """The listening socket in the mount. Raises OSError."""
    root_fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return bind_socket(root_fd).detach()
    finally:
        os.close(root_fd)
