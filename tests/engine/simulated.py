"""The engine on a virtual clock: simulated workers in front of a simulated store.

The workers obey the pool's interface: a job takes virtual time, lands in pieces, may fail or be
lost. Everything else is the real thing: arena, fetcher, prefetcher, reader.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.audit import Auditor
from fusefs.engine.blocks import Block, File, FileTable
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.guide import Guide
from fusefs.engine.hinted import HintedPlans
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.reader import Reader
from fusefs.engine.slots import Slots
from fusefs.errors import AccessDenied, CorruptData, FusefsError, ObjectChanged, to_wire
from fusefs.objects import Extent, ObjectId, ObjectMeta
from fusefs.policy.budget import arena_budget
from fusefs.policy.extents import cut_extent
from fusefs.telemetry.counters import Counters
from loaderhint.header import HeaderError, parse_header

KIB = 1024
BLOCK = 4 * KIB
RANGE = 8 * BLOCK
ROOM = 1 << 20
"""For pages pushed ahead of their readers."""


@functools.lru_cache(maxsize=256)
def content(key: str, version: int, size: int) -> bytes:
    """Bytes that tell key, version and place apart."""
    unit = f"{key}@{version}:".encode()
    pattern = b"".join(unit + b"%08d|" % i for i in range(size // (len(unit) + 9) + 1))
    return pattern[:size]


def shard(size: int, header_bytes: int = 200) -> bytes:
    """A safetensors file of `size` bytes that holds one tensor behind a header of that size."""
    data = size - 8 - header_bytes
    tensor = {"w": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}
    header = json.dumps(tensor).encode().ljust(header_bytes)
    return len(header).to_bytes(8, "little") + header + content("w", 1, data)


@dataclass(slots=True)
class SimulatedBucket:
    """Versions of objects, and what shall go wrong: the next reads raise `faults` in turn.

    Reads of `denied` keys are refused.
    """

    objects: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    faults: deque[FusefsError | None] = field(default_factory=deque)
    denied: set[str] = field(default_factory=set)
    log: list[tuple[str, Extent]] = field(default_factory=list)

    def put(self, key: str, size: int) -> ObjectMeta:
        """A new version of `key`."""
        return self.put_bytes(key, content(key, self.versions.get(key, 0) + 1, size))

    def put_bytes(self, key: str, data: bytes) -> ObjectMeta:
        """A new version of `key` that holds `data`."""
        version = self.versions[key] = self.versions.get(key, 0) + 1
        self.objects[key] = (version, data)
        return self.meta(key)

    def meta(self, key: str) -> ObjectMeta:
        """What a listing says of the current version."""
        version, data = self.objects[key]
        return ObjectMeta(ObjectId(key, f"v{version}"), len(data), 0)

    def listing(self) -> list[ObjectMeta]:
        """What a listing of all of it says."""
        return [self.meta(key) for key in sorted(self.objects)]

    def read(self, id: ObjectId, extent: Extent) -> bytes:
        """Exactly these bytes of exactly this version."""
        self.log.append((id.key, extent))
        if self.faults:
            fault = self.faults.popleft()
            if fault is not None:
                raise fault
        if id.key in self.denied:
            raise AccessDenied(f"{id.key} is refused")
        if id.key not in self.objects or f"v{self.objects[id.key][0]}" != id.etag:
            raise ObjectChanged(f"{id.key} holds another version")
        return self.objects[id.key][1][extent.start : extent.stop]


class SimulatedWorkers:
    """Threads on a virtual clock. `lose_next` reads end with their worker's death.

    `delays` are seconds that the next reads wait longer for their first bytes, in turn; `arrive`
    makes of a block what arrives of it, and the report of checks that goes with that; the next
    fetches for sums alone raise `sum_faults`.
    """

    def __init__(self, bucket: SimulatedBucket, arena: Arena, capacity: int) -> None:
        self.bucket = bucket
        self.capacity = capacity
        self.block_s = 0.001
        self.first_byte_s = 0.025
        self.lose_next = 0
        self.arrive: Callable[[str, Extent, bytes], tuple[bytes, dict[str, Any]]] | None = None
        self.delays: deque[float] = deque()
        self.sum_faults: deque[FusefsError] = deque()
        self.busy = 0
        self.busy_max = 0
        self._jobs = 0
        self._map = mmap.mmap(arena.fd, arena.budget.size_bytes)
        self._started: Callable[[jobs.ReadJob], None] = lambda job: None

    @property
    def idle(self) -> int:
        return self.capacity - self.busy

    def new_job(self) -> int:
        self._jobs += 1
        return self._jobs

    def start_read(self, job: jobs.ReadJob) -> None:
        assert self.idle > 0
        self.busy += 1
        self.busy_max = max(self.busy_max, self.busy)
        self._started(job)

    def attend(self, nursery: trio.Nursery, on_read: Callable[[jobs.Message], None]) -> None:
        """Run jobs in `nursery` from now on."""

        def start(job: jobs.ReadJob) -> None:
            delay = self.delays.popleft() if self.delays else 0.0
            nursery.start_soon(self._run, job, on_read, delay)

        self._started = start

    async def call(self, op: str, **arguments: Any) -> tuple[Any, list[Any]]:
        """Headers and indexes, as a worker answers them; one round trip each."""
        await trio.sleep(self.first_byte_s)
        if op == jobs.INDEX:
            id = ObjectId(arguments["key"], arguments["etag"])
            data = self.bucket.read(id, Extent(0, arguments["size"]))
            return None, [list(dict.fromkeys(json.loads(data)["weight_map"].values()))]
        if op == jobs.SUM:
            if self.sum_faults:
                raise self.sum_faults.popleft()
            extent = Extent(arguments["start"], arguments["stop"])
            data = self.bucket.read(ObjectId(arguments["key"], arguments["etag"]), extent)
            assert arguments["crc"] == "crc32"
            return [
                zlib.crc32(data[part.start - extent.start : part.stop - extent.start])
                for part in cut_extent(extent, arguments["block"])
            ], []
        assert op == jobs.HEADER
        data = b"".join(self._map[at : at + size] for at, size in arguments["pieces"])
        try:
            return parse_header(data[8:], arguments["size"]).data_start, []
        except HeaderError as error:
            raise CorruptData(str(error)) from error

    async def _run(
        self, job: jobs.ReadJob, on_read: Callable[[jobs.Message], None], delay: float
    ) -> None:
        await trio.sleep(self.first_byte_s + delay)
        lost, self.lose_next = self.lose_next > 0, max(0, self.lose_next - 1)
        try:
            data = self.bucket.read(job.id, job.extent)
        except FusefsError as error:
            self.busy -= 1
            on_read({"id": job.job, "error": to_wire(error)})
            return
        report = None
        for start in range(0, len(data), BLOCK):
            await trio.sleep(self.block_s)
            piece = data[start : start + BLOCK]
            if self.arrive is not None:
                at = job.extent.start + start
                piece, report = self.arrive(job.id.key, Extent(at, at + len(piece)), piece)
            self._map[job.arena_offset + start : job.arena_offset + start + len(piece)] = piece
            if lost and start + BLOCK >= len(data) // 2:
                self.busy -= 1
                on_read({"id": job.job, "lost": True})
                return
            if self.arrive is None:
                on_read({"id": job.job, "landed": start + len(piece)})
            elif start + len(piece) < len(data):  # the end is told by the answer, as in a worker
                on_read({"id": job.job, "landed": start + len(piece), "sums": report})
        self.busy -= 1
        on_read({"id": job.job, "ok": report})


@dataclass(slots=True)
class Engine:
    """All parts of one engine under test.

    `find_inode` says by which inode the kernel knows a file, `on_changed` is told of files that
    changed in the store: the tree's business, where there is one.
    """

    bucket: SimulatedBucket
    workers: SimulatedWorkers
    files: FileTable
    slots: Slots
    fetcher: Fetcher
    hinted: HintedPlans
    prefetcher: Prefetcher
    reader: Reader
    counters: Counters
    changed: list[File]
    arena: Arena
    pagecache: PageCache
    find_inode: Callable[[File], int | None] = lambda file: None
    on_changed: Callable[[File], None] = lambda file: None

    def open(self, key: str) -> File:
        """Open the current version."""
        return self.files.opened(self.bucket.meta(key))

    def close(self, file: File) -> None:
        """Close a handle, as `Operations.release` does."""
        self.files.closed(file)
        self.prefetcher.closed(file)

    async def read(self, file: File, offset: int, size: int) -> bytes:
        """Read as the kernel does, and keep a copy."""
        return bytes(await self.reader.read(file, offset, size))


@asynccontextmanager
async def open_engine(
    slots: int = 64,
    capacity: int = 8,
    deadline_s: float = 60.0,
    head_bytes: int = 4 * BLOCK,
    guided: bool = False,
) -> AsyncIterator[Engine]:
    """An engine with blocks of 4 KiB, running until the end of the `async with`.

    Only if `guided` are headers looked at and siblings found: all of the bucket is one directory.
    """
    budget = arena_budget(slots * BLOCK, 1, BLOCK, RANGE, capacity)
    arena = Arena(budget)
    if arena._read_only_fd is None:  # an older kernel: nobody here means to write through it
        arena._read_only_fd = os.dup(arena.fd)
    counters = Counters()
    bucket = SimulatedBucket()
    workers = SimulatedWorkers(bucket, arena, capacity)
    files = FileTable(BLOCK, budget.range_blocks_max)
    changed: list[File] = []
    tenants = Slots(budget, files, counters)
    pace = Pace(budget, counters, lambda: False)

    def change(file: File) -> None:
        changed.append(file)
        engine.on_changed(file)

    def landed(blocks: list[Block]) -> None:
        pagecache.landed(blocks)  # which has no pusher, unless a test gives it one

    fetcher = Fetcher(budget, tenants, workers, counters, change, landed, pace)

    auditor = Auditor(fetcher.checking, tenants, workers, BLOCK, fetcher.condemn)

    def find_inode(file: File) -> int | None:
        return engine.find_inode(file)

    pagecache = PageCache(arena, tenants, counters, find_inode, lambda: ROOM, fetcher.wake)

    def closed(file: File) -> None:
        prefetcher.closed(file)

    hinted = HintedPlans(files, tenants, closed, fetcher.wake)
    prefetcher = Prefetcher(files, hinted, head_bytes, budget.lead_first // 4, fetcher.wake)
    reader = Reader(arena, tenants, fetcher, prefetcher, counters, pagecache, deadline_s)
    guide = Guide(workers, fetcher, arena, lambda file: bucket.listing(), counters)
    engine = Engine(
        bucket, workers, files, tenants, fetcher, hinted, prefetcher, reader, counters, changed,
        arena, pagecache,
    )  # fmt: skip
    try:
        async with trio.open_nursery() as nursery:
            workers.attend(nursery, fetcher.on_read)
            nursery.start_soon(fetcher.run, prefetcher.next_run)
            nursery.start_soon(hinted.run)
            nursery.start_soon(auditor.run)
            if guided:
                nursery.start_soon(prefetcher.run, guide)
            yield engine
            nursery.cancel_scope.cancel()
    finally:
        arena.close()
