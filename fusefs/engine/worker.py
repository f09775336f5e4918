"""Inside a worker process: threads that take jobs from one socket and run them against the store.

The socket is SEQPACKET and shared by all threads: the kernel hands each job to one of them, without
a lock or a queue of ours. Bytes go from the SDK straight into the arena; only small answers travel
back. A worker decides nothing: it neither retries nor queues. It ends when its socket does.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from fusefs.engine import jobs
from fusefs.engine.shared_memory import map_shared_memory
from fusefs.engine.verifier import Report, Verifier
from fusefs.errors import CorruptData, FusefsError, InternalError, to_wire
from fusefs.objects import Extent, ObjectId
from fusefs.policy.crc import find_computing
from fusefs.policy.extents import cut_extent
from fusefs.store.base import Store
from loaderhint.header import HeaderError, parse_header, read_length

log = logging.getLogger("fusefs.worker")

INDEX_BYTES_MAX = 64 << 20
"""An index.json larger than this is not one: a model of 10^6 tensors has about 100 MB of header."""

_LANDED_FIRST_BYTES = 1 << 20
"""One block. A message for each block would cost 5 % of the CPU of a fetch."""

_PARTS_MAX = 512
"""Sums that wait to be told of: 50 bytes each in a message of 128 KiB, and one MiB has 16 at most
(`engine.block_size`)."""

LANDED_EVERY_S = 0.05
"""Slow connections tell of each block, so that nobody waits long for bytes that are there: at less
than 20 MB/s for each connection, a message for each MiB costs next to nothing."""

_THREAD_STACK_BYTES = 512 * 1024
"""Enough for the SDKs' call depth; the default 8 MiB of address space per thread counts in some
container limits."""


class Worker:
    """Runs jobs. Shared by its threads.

    The mutable state of Worker is the count of its threads and of those that wait for a job, under
    the lock. INVARIANT: one of them waits, unless there are as many as there may be.
    """

    def __init__(
        self,
        store: Store,
        arena_fd: int,
        channel: socket.socket,
        verifier: Verifier | None = None,
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._channel = channel
        self._arena = memoryview(map_shared_memory(arena_fd))
        self._lock = threading.Lock()
        self._threads_max = 1
        self._threads = 1
        self._waiting = 1
        self._operations: dict[str, Callable[[jobs.Message], Any]] = {
            jobs.READ: self._read,
            jobs.LIST: self._list,
            jobs.HEAD: self._head,
            jobs.CHECK: self._check,
            jobs.HEADER: self._header,
            jobs.INDEX: self._index,
            jobs.SUM: self._sum,
        }

    def run(self, threads: int) -> None:
        """Serve until the daemon closes its end of the socket, with up to so many threads.

        They start as they are needed: a mount that gets along with few connections has few.
        """
        threading.stack_size(_THREAD_STACK_BYTES)
        self._threads_max = threads
        self._serve()

    def _begin(self) -> None:
        """The calling thread has a job: see to it that another one waits for the next."""
        with self._lock:
            self._waiting -= 1
            if self._waiting or self._threads >= self._threads_max:
                return
            self._threads += 1
            self._waiting += 1
            name = f"fetch-{self._threads}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError as error:
            log.info("fewer threads than wanted: %s", error)  # jobs wait in the socket then
            with self._lock:
                self._threads_max = self._threads = self._threads - 1
                self._waiting -= 1

    def _end(self) -> None:
        with self._lock:
            self._waiting += 1

    def _serve(self) -> None:
        while True:
            data = self._channel.recv(jobs.MESSAGE_BYTES_MAX)
            if not data:
                return
            self._begin()
            message = jobs.decode(data)
            try:
                answer = {"ok": self._operations[message["op"]](message)}
            except FusefsError as error:
                answer = {"error": to_wire(error)}
            except Exception as error:  # the body of a background task: the daemon must hear of it
                log.exception("job %s failed in an unforeseen way", message["op"])
                answer = {"error": to_wire(InternalError(f"{type(error).__name__}: {error}"))}
            self._end()
            self._send(message["id"], answer)

    def _send(self, job: int, answer: jobs.Message) -> None:
        message = jobs.encode({"id": job, **answer})
        if len(message) > jobs.MESSAGE_BYTES_MAX:  # a token of a listing, say
            error = CorruptData("the store's answer holds more than any store says")
            message = jobs.encode({"id": job, "error": to_wire(error)})
        try:
            self._channel.send(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the daemon is gone, and nobody is left to serve

    def _read(self, message: jobs.Message) -> jobs.Message | None:
        """Fetch a range. The answer is what checks found out since the daemon was last told."""
        id = ObjectId(message["key"], message["etag"])
        extent = Extent(message["start"], message["stop"])
        at = message["at"]
        buffer = self._arena[at : at + extent.size]
        telling = _Telling(self._send, message["id"], extent.size)
        if self._verifier is None:
            self._store.read_into(id, extent, buffer, telling.landed)
            return None
        self._verifier.read_into(id, extent, buffer, telling.checked)
        return telling.report.to_wire()

    def _list(self, message: jobs.Message) -> str | None:
        page = self._store.list_page(message["prefix"], message["token"])
        for part in jobs.page_to_parts(page):
            self._send(message["id"], {"part": part})
        return page.next_token

    def _head(self, message: jobs.Message) -> list[Any]:
        return jobs.meta_to_wire(self._store.head(message["key"]))

    def _check(self, message: jobs.Message) -> None:
        self._store.check(message["prefix"])

    def _header(self, message: jobs.Message) -> int:
        """Parse a safetensors header that lies in the arena; returns where its data begins."""
        data = b"".join(self._arena[at : at + size] for at, size in message["pieces"])
        try:
            length = read_length(data[:8])
            return parse_header(data[8 : 8 + length], message["size"]).data_start
        except HeaderError as error:
            raise CorruptData(f"not a safetensors header: {error}") from error

    def _sum(self, message: jobs.Message) -> list[int]:
        """Fetch a range for nothing but the CRCs of its blocks."""
        extent = Extent(message["start"], message["stop"])
        data = memoryview(bytearray(extent.size))
        self._store.read_into(ObjectId(message["key"], message["etag"]), extent, data)
        compute = find_computing(message["crc"])
        return [
            compute(data[part.start - extent.start : part.stop - extent.start])
            for part in cut_extent(extent, message["block"])
        ]

    def _index(self, message: jobs.Message) -> None:
        """Read a model's index and send the shard names it holds, in the order of first mention."""
        size = message["size"]
        if size > INDEX_BYTES_MAX:
            raise CorruptData(f"the index has {size} bytes, more than any index")
        data = bytearray(size)
        id = ObjectId(message["key"], message["etag"])
        if size:
            self._store.read_into(id, Extent(0, size), memoryview(data))
        for part in _index_parts(bytes(data)):
            self._send(message["id"], {"part": part})


class _Telling:
    """Tells the daemon of the first MiB of a read, of two, of four: who waits, waits for the first.

    The mutable state of _Telling is when it tells again, and what checks found out until then.
    """

    def __init__(self, send: Callable[[int, jobs.Message], None], job: int, size: int) -> None:
        self._send = send
        self._job = job
        self._size = size
        self._due = _LANDED_FIRST_BYTES
        self._told_s = time.monotonic()
        self.report = Report()

    def landed(self, landed: int) -> None:
        """So many bytes are final, unchecked."""
        if self._is_due(landed):
            self._send(self._job, {"landed": landed})

    def checked(self, landed: int, report: Report) -> None:
        """So many bytes are final, and this is new of them."""
        self.report = self.report.joined(report)
        if self._is_due(landed):
            self._send(self._job, {"landed": landed, "sums": self.report.to_wire()})
            self.report = Report()

    def _is_due(self, landed: int) -> bool:
        now = time.monotonic()
        # The end is told by the answer.
        due = 0 < landed < self._size and (
            landed >= self._due
            or now - self._told_s >= LANDED_EVERY_S
            or len(self.report.parts) >= _PARTS_MAX
        )
        if due:
            self._due, self._told_s = 2 * landed, now
        return due


def _index_parts(data: bytes) -> list[list[str]]:
    """The distinct shard names of an index, in parts that fit a datagram."""
    try:
        weight_map = json.loads(data)["weight_map"]
        names = list(dict.fromkeys(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"not a model index: {type(error).__name__}") from error
    if not all(isinstance(name, str) and len(name) <= 255 for name in names):
        raise CorruptData("not a model index: a shard name is not a file name")
    return jobs.in_parts(names)
