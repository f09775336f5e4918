"""A worker's threads: as many as there are jobs at once, and no more than there may be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fusefs.engine import jobs
from fusefs.engine.worker import Worker
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta

LIMIT_S = 20.0
ID = ObjectId("a", "v")


class GatedStore:
    """Reads wait at a gate; `reading` is released for each that arrived there."""

    def __init__(self) -> None:
        self.reading = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.page = ListPage((), (), None)

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        self.reading.release()
        assert self.gate.acquire(timeout=LIMIT_S)

    def check(self, prefix: str) -> None: ...

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        return self.page

    def head(self, key: str) -> ObjectMeta:
        return ObjectMeta(ID, 0, 0)

    def close(self) -> None: ...


class Daemon:
    """The daemon's end of a worker's socket."""

    def __init__(self, store: GatedStore, channel: socket.socket) -> None:
        self.store = store
        self._channel = channel
        self._sent = 0
        self._finished = 0

    def start(self, count: int) -> None:
        for _ in range(count):
            self._sent += 1
            message = jobs.ReadJob(self._sent, ID, Extent(0, 10), 0).to_message()
            self._channel.send(jobs.encode(message))

    def wait_reading(self, count: int) -> None:
        for _ in range(count):
            assert self.store.reading.acquire(timeout=LIMIT_S)

    def ask_for_names(self) -> jobs.Message:
        """The last message about a listing; those before it are parts of it."""
        self._channel.send(jobs.encode({"id": 0, "op": jobs.LIST, "prefix": "", "token": None}))
        while True:
            data = self._channel.recv(jobs.MESSAGE_BYTES_MAX)
            message = jobs.decode(data)
            if "part" not in message:
                return message

    def finish(self, count: int | None = None) -> None:
        """Let `count` jobs end, or all that there are."""
        count = self._sent - self._finished if count is None else count
        if count:
            self.store.gate.release(count)
        for _ in range(count):
            self._finished += 1
            assert "ok" in jobs.decode(self._channel.recv(jobs.MESSAGE_BYTES_MAX))


def fetch_threads() -> int:
    return sum(thread.name.startswith("fetch-") for thread in threading.enumerate())


@contextmanager
def open_worker(threads: int) -> Iterator[Daemon]:
    """A worker in this process, with a thread for its main one."""
    store = GatedStore()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(LIMIT_S)
    arena = os.memfd_create("arena")
    os.ftruncate(arena, 4096)
    stack = threading.stack_size()
    worker = Worker(store, arena, theirs)
    main = threading.Thread(target=worker.run, args=(threads,), name="fetch-main")
    try:
        main.start()
        daemon = Daemon(store, ours)
        yield daemon
    finally:
        daemon.finish()  # an answer into a closed socket ends the process, here ours
        ours.close()
        for thread in threading.enumerate():
            if thread.name.startswith("fetch-"):
                thread.join(LIMIT_S)
        threading.stack_size(stack)
        theirs.close()
        os.close(arena)


def test_threads_start_as_they_are_needed() -> None:
    """One waits for the next job; those that there are, are used again."""
    with open_worker(8) as daemon:
        for _ in range(5):
            daemon.start(1)
            daemon.wait_reading(1)
            daemon.finish(1)
        assert fetch_threads() <= 2
        daemon.start(5)
        daemon.wait_reading(5)
        assert fetch_threads() <= 6


def test_all_threads_there_may_be_work_at_once() -> None:
    """With as many jobs as threads each has one; further jobs wait their turn."""
    with open_worker(4) as daemon:
        daemon.start(6)
        daemon.wait_reading(4)
        assert fetch_threads() == 4
        assert not daemon.store.reading.acquire(blocking=False)
        daemon.finish(6)


def test_a_system_without_threads_is_served_by_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no thread can be started, jobs wait in the socket."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with open_worker(4) as daemon:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            daemon.start(3)
            daemon.wait_reading(1)
            daemon.finish(3)
        daemon.start(2)
        daemon.finish(2)
        assert fetch_threads() == 1


LONG = "x" * jobs.MESSAGE_BYTES_MAX


@pytest.mark.parametrize(
    "page",
    [
        ListPage((ObjectMeta(ObjectId(LONG, "v"), 1, 0),), (), None),
        ListPage((ObjectMeta(ObjectId("a", LONG), 1, 0),), (), None),
        ListPage((), (f"{LONG}/",), None),
        ListPage((), ("\U0001f600" * 20_000,), None),
        ListPage((), (), LONG),
        ListPage((ObjectMeta(ID, -1, 0),), (), None),
        ListPage((ObjectMeta(ID, 1 << 63, 0),), (), None),
        ListPage((ObjectMeta(ID, 1, 1 << 70),), (), None),
    ],
    ids=["key", "etag", "prefix", "escapes", "token", "less than nothing", "huge", "time"],
)
def test_what_no_store_says_is_an_error_and_ends_no_worker(page: ListPage) -> None:
    """Names beyond every length, impossible sizes and times: said as an error, in one message."""
    with open_worker(2) as daemon:
        daemon.store.page = page
        assert daemon.ask_for_names()["error"]["class"] == "CorruptData"
        daemon.store.page = ListPage((ObjectMeta(ID, 1, 0),), ("d/",), "token")
        assert daemon.ask_for_names()["ok"] == "token"
