"""A push or pull of a directory that SIGKILL ends after some pieces, as a process of its own.

`python -m tests.transfer.dying push|pull FROM TO PIECES`: exactly PIECES pieces arrive, in order.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from fusefs.objects import Extent, ObjectId
from fusefs.store.base import Source, Upload
from fusefs.store.posix import PosixStore
from fusefs.store.posix_write import PosixWriter
from fusefs.transfer.crew import Crew
from fusefs.transfer.pull import Pull
from fusefs.transfer.push import Destination, Push
from fusefs.transfer.remote import PIECE_BYTES
from tests.transfer.folders import Watcher


class Fuse:
    """Burns down by one for each piece."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def burn(self) -> None:
        """Die if the last piece has been."""
        if self.pieces == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.pieces -= 1


class DyingUpload:
    """An upload whose process dies before a part."""

    def __init__(self, upload: Upload, fuse: Fuse) -> None:
        self.part_bytes = upload.part_bytes
        self.commit = upload.commit
        self._upload = upload
        self._fuse = fuse

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        self._fuse.burn()
        return self._upload.put_part(index, data)


class DyingWriter(PosixWriter):
    """A writer of such uploads."""

    def __init__(self, directory: str, fuse: Fuse) -> None:
        super().__init__(directory)
        self._fuse = fuse

    def begin(self, key: str, size: int) -> Upload:
        """See `Writer`."""
        return DyingUpload(super().begin(key, size), self._fuse)


class DyingStore(PosixStore):
    """A store whose reader dies before a large read."""

    def __init__(self, directory: str, fuse: Fuse) -> None:
        super().__init__(directory)
        self._fuse = fuse

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        if extent.size == PIECE_BYTES:
            self._fuse.burn()
        super().read_into(id, extent, buffer, landed)


def main(verb: str, origin: str, place: str, pieces: int) -> None:
    """Do it, with one thread."""
    fuse, crew, watcher = Fuse(pieces), Crew(1), Watcher()
    if verb == "push":
        source = Source("file", place, "", f"file://{place}")
        destination = Destination(source, PosixStore(place), DyingWriter(place, fuse))
        Push(origin, destination, crew, watcher, False).run(dry_run=False)
    else:
        source = Source("file", origin, "", f"file://{origin}")
        Pull(source, DyingStore(origin, fuse), place, crew, watcher, False).run(dry_run=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
