"""Threads that work through a stream of jobs, and the patience they have with a store.

The one idea: jobs are taken from an iterator, one at a time, so that a job is made (a file opened,
an upload begun) only when a thread is free for it. The first failure, or Ctrl-C, stops all after
the request each is in.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TypeVar

from fusefs.errors import FusefsError, StoreThrottled, StoreUnavailable
from fusefs.policy.backoff import backoff_s

T = TypeVar("T")
Job = Callable[[], object]

TRIES_MAX = 12
"""About 30 s of waiting in all, on average: a store's failover. Whoever gives up later can start
the command again, and it goes on."""


class Crew:
    """Runs jobs in `size` threads.

    The mutable state of Crew is whether to stop (`_stop`) and the first failure.
    INVARIANT: the iterator of jobs is advanced by one thread at a time.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs; return when the last is done. Raises what the first failed one raised."""
        source = iter(jobs)
        # Daemons: a second Ctrl-C, while one hangs in the network, must end the process.
        threads = [
            threading.Thread(target=self._work, args=(source,), daemon=True)
            for _ in range(self.size)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._stop.set()
            for thread in threads:
                thread.join()
            raise
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no new job and try nothing again, from now on."""
        self._stop.set()

    def check(self) -> None:
        """Raise `FusefsError` if the crew stops: for jobs that are long and ask no store."""
        if self._stop.is_set():
            raise FusefsError("the transfer was stopped")

    def retry(self, action: Callable[[], T]) -> T:
        """Do `action`, again after a pause as long as the store is unavailable.

        Raises what it raised last, and `FusefsError` at once if the crew stops.
        """
        for attempt in count(1):
            self.check()
            try:
                return action()
            except StoreUnavailable as error:
                if attempt >= TRIES_MAX:
                    raise
                after_s = error.retry_after_s if isinstance(error, StoreThrottled) else None
                chance = random.random()  # noqa: S311 - jitter, no secret
                self._stop.wait(backoff_s(attempt, chance, after_s))
        raise AssertionError("unreachable: the last attempt returned or raised")

    def _work(self, source: Iterator[Job]) -> None:
        while not self._stop.is_set():
            try:
                with self._lock:
                    job = None if self._stop.is_set() else next(source, None)
                if job is None:
                    return
                job()
            except Exception as error:  # noqa: BLE001 - raised again by `run`
                with self._lock:
                    if self._failure is None:
                        self._failure = error
                self._stop.set()
