"""Files into a store: small ones at once, large ones in parts, all of them by one crew.

The one idea: a file is opened and its upload begun when the first thread is free for it, and
whoever puts its last part commits it. Parts are read into one buffer per thread: memory is
bounded by threads x parts, and a file that shrinks under us is an error and no SIGBUS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial

from fusefs.errors import CorruptData, ObjectChanged
from fusefs.objects import ObjectMeta
from fusefs.store.base import Upload, Writer
from fusefs.transfer.crew import Crew, Job
from fusefs.transfer.local import LocalFile, check_unchanged, open_unchanged
from fusefs.transfer.progress import Progress

SMALL_BYTES = 4 << 20
"""Up to here one request in place of three or more; a try that fails costs no more than a part."""


class _Sending:
    """A file on its way. Its mutable state is `parts_left`, under the uploader's lock."""

    def __init__(self, file: LocalFile, file_fd: int, upload: Upload) -> None:
        self.file = file
        self.file_fd = file_fd
        self.upload = upload
        self.parts_left = -(-file.size // upload.part_bytes)


class Uploader:
    """Uploads files below `prefix`.

    The mutable state of Uploader, under its lock, is what was done: `bytes_sent`, `bytes_there`
    (found from an attempt that was cut), the versions that `arrived`, and the open descriptors.
    """

    def __init__(self, writer: Writer, prefix: str, crew: Crew, progress: Progress) -> None:
        self._writer = writer
        self._prefix = prefix
        self._crew = crew
        self._progress = progress
        self._buffers = threading.local()

        self._lock = threading.Lock()
        self._open: set[int] = set()
        self.bytes_sent = 0
        self.bytes_there = 0
        self.arrived: dict[str, ObjectMeta] = {}

    def upload_all(self, files: Sequence[LocalFile]) -> None:
        """Upload these files. Raises what the first failure was; parts stay in the store then."""
        try:
            self._crew.run(self._jobs(files))
        finally:
            for file_fd in self._open:
                os.close(file_fd)
            self._open.clear()

    def _jobs(self, files: Sequence[LocalFile]) -> Iterator[Job]:
        for file in files:
            if file.size <= SMALL_BYTES:
                yield partial(self._put, file)
            else:
                yield from self._parts(file)

    def _put(self, file: LocalFile) -> None:
        file_fd = open_unchanged(file)
        try:
            data = bytes(self._read(file, file_fd, 0, file.size))
            check_unchanged(file, file_fd)
        finally:
            os.close(file_fd)
        key = self._prefix + file.name
        meta = self._crew.retry(lambda: self._writer.put(key, data))
        self._count(file.size, True)
        self._check_arrived(file, meta)

    def _parts(self, file: LocalFile) -> Iterator[Job]:
        file_fd = open_unchanged(file)
        with self._lock:
            self._open.add(file_fd)
        key = self._prefix + file.name
        upload = self._crew.retry(lambda: self._writer.begin(key, file.size))
        sending = _Sending(file, file_fd, upload)
        for index in range(sending.parts_left):
            yield partial(self._put_part, sending, index)

    def _put_part(self, sending: _Sending, index: int) -> None:
        file, upload = sending.file, sending.upload
        start = index * upload.part_bytes
        size = min(upload.part_bytes, file.size - start)
        data = self._read(file, sending.file_fd, start, size)
        sent = self._crew.retry(lambda: upload.put_part(index, data))
        self._count(size, sent)
        with self._lock:
            sending.parts_left -= 1
            last = sending.parts_left == 0
        if last:
            # Every part has been read by now: had the file changed since, it would show here.
            check_unchanged(file, sending.file_fd)
            with self._lock:
                self._open.discard(sending.file_fd)
            os.close(sending.file_fd)
            self._check_arrived(file, self._crew.retry(upload.commit))

    def _count(self, size: int, sent: bool) -> None:
        with self._lock:
            if sent:
                self.bytes_sent += size
            else:
                self.bytes_there += size
            self._progress.advance(size)

    def _read(self, file: LocalFile, file_fd: int, start: int, size: int) -> memoryview:
        """These bytes of the file, in this thread's buffer."""
        buffer: bytearray = getattr(self._buffers, "buffer", bytearray())
        if len(buffer) < size:
            buffer = bytearray(size)
            self._buffers.buffer = buffer
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = os.preadv(file_fd, [view[done:]], start + done)
            if count == 0:
                raise ObjectChanged(f"{file.path!r} became shorter meanwhile: push it again")
            done += count
        return view

    def _check_arrived(self, file: LocalFile, meta: ObjectMeta) -> None:
        """Note the version. Raises `CorruptData` unless the store's answer is what was sent."""
        if meta.size != file.size:
            raise CorruptData(
                f"{meta.id.key!r} arrived with {meta.size} of {file.size} bytes: push it again"
            )
        with self._lock:
            self.arrived[file.name] = meta
