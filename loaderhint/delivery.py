"""Loads parts into memory: out of the daemon's slots, or by reading the files with many threads.

The one idea: the slots are a faster way to the same bytes. Whatever is wrong with them, the daemon
gone, a file it could not fetch, silence, what they have not brought is read from the files, and
only those reads can fail a load.

Slots are read by preadv from the arena's descriptor, not through a mapping: it lets go of the GIL,
copies as fast (1.9 against 0.5 GB/s into memory of the first touch, 2 cores), and an arena that
shrinks is a short read where a mapping would be SIGBUS.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loaderhint import protocol
from loaderhint.client import LOST, Client
from loaderhint.files import OpenFile
from loaderhint.ledger import Ledger, Read
from loaderhint.plan import Extent, Part
from loaderhint.wishes import Events, Wanted

THREADS = 8
"""Reads at a time. On a mount they mostly wait; 8 is what engines use for files."""

COPY_THREADS = 2
"""Threads that copy slots: one core copies several GB/s."""

CHUNK_BYTES = 16 << 20
"""One read: large enough that the Python around it costs nothing, small enough to share a tensor
out among the threads."""

STALL_S = 10.0
"""Without a slot for so long, with none of ours to come back, the files are read instead."""

PATIENCE_S = STALL_S / 4

_PIECES_PER_READ = 512
"""Half of IOV_MAX."""

_log = logging.getLogger("loaderhint")


@dataclass(frozen=True, slots=True)
class Slots:
    """A mapped plan: where its slots are announced, and the arena they lie in."""

    client: Client
    plan: str
    events: Events
    arena: int
    files: dict[int, int]
    """Number of the file for each inode."""


class Delivery:
    """One load, running in threads of its own from `start` to `close`.

    The mutable state of Delivery is the ledger, the threads, whether it closes, and the end of the
    slots: `_over` once no more is taken from them.
    """

    def __init__(
        self,
        files: Sequence[OpenFile],
        ledger: Ledger,
        slots: Slots | None = None,
        threads: int = THREADS,
    ) -> None:
        self._files = files
        self._ledger = ledger
        self._slots = slots
        self._threads = threads
        self._over, self._closing = threading.Event(), threading.Event()
        self._last_slot = time.monotonic()
        self._coordinator = threading.Thread(
            target=self._guarded, args=(self._run,), name="loaderhint-load", daemon=True
        )

    def start(self) -> None:
        """Begin; once."""
        self._coordinator.start()

    def __iter__(self) -> Iterator[tuple[Part, Any]]:
        """The parts and their memory, as they become whole. Raises OSError."""
        while (taken := self._ledger.take()) is not None:
            yield taken

    def close(self) -> None:
        """Stop, and wait for the reads that are under way."""
        self._closing.set()
        self._ledger.stop()
        self._end_slots()
        self._coordinator.join()

    def _run(self) -> None:
        if self._slots is not None:
            self._last_slot = time.monotonic()
            self._in_threads(COPY_THREADS, self._take_slots)
            if not self._closing.is_set():
                self._ask_for_the_rest(self._slots)
        # Taken from in order: see Ledger.wait_turn.
        chunks = list(_chunks(self._ledger.missing()))
        following = iter(chunks)  # shared: one step of it is atomic
        self._in_threads(min(self._threads, len(chunks)), lambda: self._read_chunks(following))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 the body of a thread: its taker hears it
            self._ledger.fail(error)

    def _in_threads(self, count: int, work: Callable[[], None]) -> None:
        names = [f"loaderhint-load-{number}" for number in range(count)]
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _read_chunks(self, chunks: Iterator[tuple[int, int, int]]) -> None:
        while self._ledger.wait_turn():
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                self._read_chunk(*chunk)
            finally:
                self._ledger.leave()

    def _read_chunk(self, file: int, start: int, stop: int) -> None:
        source = self._files[file]
        for run in self._ledger.claim(file, start, stop):
            try:
                self._ledger.fill(run, _reader(source.fd, run[0].start))
            except OSError as error:
                raise OSError(error.errno, error.strerror, source.path) from error
            self._ledger.done(run)

    def _take_slots(self) -> None:
        slots = self._slots
        assert slots is not None
        silent_s = 0.0
        while self._ledger.wait_room() and not self._over.is_set():
            event = slots.events.take(PATIENCE_S)
            if event is None:
                silent_s += PATIENCE_S
                if min(silent_s, time.monotonic() - self._last_slot) >= STALL_S:
                    _log.debug("no slot came for %s s", STALL_S)
                    self._end_slots()
                continue
            silent_s = 0.0
            if event.get("ev") == protocol.SLOT:
                if not self._take_slot(slots, event):
                    self._end_slots()
                self._last_slot = time.monotonic()
            elif event.get("ev") in (protocol.DONE, protocol.FAILED, LOST):
                _log.debug("the slots end: %s", event)
                self._end_slots()

    def _take_slot(self, slots: Slots, event: dict[str, Any]) -> bool:
        """Copy what a slot has for us; False if it is not to be trusted, nor the next."""
        place = [event.get(key) for key in ("inode", "start", "size", "at")]
        numbers = [value for value in place if type(value) is int and 0 <= value < 2**63]
        if len(numbers) < len(place):
            _log.debug("no slot: %s", event)
            return False
        inode, start, size, at = numbers
        file = slots.files.get(inode)
        runs = [] if file is None else self._ledger.claim(file, start, start + size)
        try:
            for run in runs:
                self._ledger.fill(run, _reader(slots.arena, at + run[0].start - start))
        except OSError as error:
            _log.debug("a slot cannot be read: %s", error)
            self._ledger.give_back(itertools.chain(*runs))
            return False
        # Only now: as long as the daemon has not hung up, the slot was ours all the while.
        if runs and not slots.client.holds(slots.plan):
            self._ledger.give_back(itertools.chain(*runs))
            return False
        self._ledger.done(itertools.chain(*runs))
        slots.client.release(slots.plan, [at])
        return True

    def _end_slots(self) -> None:
        self._over.set()
        if self._slots is not None:
            for _ in range(COPY_THREADS):  # whoever waits for an event
                self._slots.events.put({"ev": LOST})

    def _ask_for_the_rest(self, slots: Slots) -> None:
        """Give up the slots that came and were not taken; what is missing is asked for as files."""
        slots.client.cancel(slots.plan)
        rest: dict[int, list[Extent]] = {}
        for file, start, stop in self._ledger.missing():
            rest.setdefault(file, []).append((start, stop))
        if rest:
            wanted = [
                Wanted(self._files[file].inode, tuple(extents)) for file, extents in rest.items()
            ]
            slots.client.plan(f"{slots.plan}-rest", wanted, order="listed")


def read_fully(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Fill `buffers` from `offset` on. Raises OSError, EIO if the file ends before."""
    waiting = deque(buffers)
    while waiting:
        count = os.preadv(fd, list(itertools.islice(waiting, _PIECES_PER_READ)), offset)
        if count == 0:
            raise OSError(errno.EIO, "the file ends early")
        offset += count
        while count:
            first = waiting[0]
            if count < len(first):
                waiting[0] = first[count:]
                break
            count -= len(first)
            waiting.popleft()


def _reader(fd: int, offset: int) -> Read:
    at = offset

    def read(buffers: list[memoryview]) -> None:
        nonlocal at
        read_fully(fd, buffers, at)
        at += sum(map(len, buffers))

    return read


def _chunks(missing: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Neighbours of the plan that touch, read as one; what is long, in pieces."""
    file, at, end = -1, 0, 0
    for next_file, start, stop in missing:
        if next_file != file or start != end:
            yield from _cut(file, at, end)
            file, at = next_file, start
        end = stop
        while end - at >= CHUNK_BYTES:
            yield file, at, at + CHUNK_BYTES
            at += CHUNK_BYTES
    yield from _cut(file, at, end)


def _cut(file: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    if start < stop:
        yield file, start, stop
