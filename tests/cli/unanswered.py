"""A fusefs mount with nobody behind it: it hangs whoever asks, and is dead once let go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusefs.mount import kernel


class Unanswered:
    """A mount whose requests nobody reads.

    The mutable state of Unanswered is the descriptor. INVARIANT: None once the mount is dead.
    """

    def __init__(self, path: Path, fuse_fd: int) -> None:
        self.path = path
        self._fuse_fd: int | None = fuse_fd

    def die(self) -> None:
        """Close the last descriptor, as the end of a daemon does."""
        if self._fuse_fd is not None:
            os.close(self._fuse_fd)
            self._fuse_fd = None


@contextmanager
def open_unanswered(path: Path) -> Iterator[Unanswered]:
    """Mount on the folder `path`; whatever happens, nothing stays mounted."""
    mount = Unanswered(path, kernel.mount_fuse("s3://bucket/", str(path), allow_other=False))
    try:
        yield mount
    finally:
        mount.die()
        if kernel.find_mount(str(path)) is not None:
            kernel.unmount(str(path), lazy=True)
