"""A race of processes against one list of ranges: the frame of every ceiling.

Processes x threads, each thread with one recycled buffer, take range after range from a shared
counter until none is left. One idea: the clock starts when every process is ready, and is read by
each of them when its last thread is done; so neither start nor end of a process is measured.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

Fetch: TypeAlias = Callable[[int, memoryview], str | None]
"""Fetches the range of this number into the buffer; says what is wrong with it, if anything."""

WRONG_MAX = 5
"""So many faults are told: one is enough to make a figure void."""


def race(
    open_fetch: Callable[[], Fetch], sizes: Sequence[int], processes: int, threads: int
) -> NoReturn:
    """Fetch all ranges, print the JSON result, and end this process without a further look.

    `open_fetch` is called once in each forked process; `sizes` are those of the ranges in bytes.
    Forked, so that the parent has imported for all: it must not have started a thread.
    """
    context = multiprocessing.get_context("fork")
    taken = context.Value("q", 0)
    barrier = context.Barrier(processes + 1)
    pipes: list[multiprocessing.connection.Connection] = []
    workers = []
    for _ in range(processes):
        receiving, sending = context.Pipe(duplex=False)
        lane = _Lane(open_fetch, sizes, threads, taken)
        worker = context.Process(target=lane.run, args=(barrier, sending), daemon=True)
        worker.start()
        sending.close()
        pipes.append(receiving)
        workers.append(worker)
    barrier.wait()
    started = time.monotonic()
    results = [pipe.recv() for pipe in pipes]
    for worker in workers:
        worker.join()
    told = {
        "seconds": max(result["ended"] for result in results) - started,
        "bytes": sum(sizes),
        "cpu_s": sum(result["cpu_s"] for result in results),
        "wrong": [text for result in results for text in result["wrong"]][:WRONG_MAX],
    }
    print(json.dumps(told), flush=True)
    os._exit(0)


def touched_buffer(size: int) -> memoryview:
    """Return memory that has been touched: a first touch costs more than the copy."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:: mmap.PAGESIZE] = b"\0" * (-(-size // mmap.PAGESIZE))
    return memoryview(memory)


class _Lane:
    """One process of the race.

    The mutable state of _Lane is what was wrong, appended to by its threads.
    """

    def __init__(
        self, open_fetch: Callable[[], Fetch], sizes: Sequence[int], threads: int, taken: Any
    ) -> None:
        self._open_fetch = open_fetch
        self._sizes = sizes
        self._threads = threads
        self._taken = taken
        self._wrong: list[str] = []

    def run(self, barrier: Any, results: multiprocessing.connection.Connection) -> None:
        """Fetch until no range is left; send when that was, the CPU time and what was wrong."""
        fetch = self._open_fetch()
        buffers = [touched_buffer(max(self._sizes)) for _ in range(self._threads)]
        threads = [
            threading.Thread(target=self._fetch_all, args=(fetch, buffer)) for buffer in buffers
        ]
        barrier.wait()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        results.send({"ended": ended, "cpu_s": cpu_s, "wrong": self._wrong})

    def _fetch_all(self, fetch: Fetch, buffer: memoryview) -> None:
        while True:
            with self._taken.get_lock():
                number = self._taken.value
                self._taken.value += 1
            if number >= len(self._sizes):
                return
            wrong = fetch(number, buffer[: self._sizes[number]])
            if wrong is not None:
                self._wrong.append(wrong)
