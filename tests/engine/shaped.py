"""A shaped origin on a virtual clock: a rate per connection, a time to first byte, one link.

Workers as the fetcher knows them, without bytes: only when they arrive is simulated. Connections
share the link fairly; since all have the same rate at any time, one curve of "bytes per connection
so far" serves all of them, and a transfer is two points on it. Everything above the workers is the
real thing, so that a load here takes as long as the controller's decisions make it take.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import trio
import trio.testing

from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.blocks import File, FileTable
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.hinted import HintedPlans
from fusefs.engine.pace import Pace
from fusefs.engine.pagecache import PageCache
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.reader import Reader
from fusefs.engine.slots import Slots
from fusefs.engine.worker import LANDED_EVERY_S
from fusefs.errors import CorruptData, StoreThrottled, to_wire
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.policy.budget import ArenaBudget, arena_budget
from fusefs.telemetry.counters import Counters

MIB = 1 << 20
GIB = 1 << 30
MB = 10**6


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store gives. Rates are bytes per second; `spread` varies each answer by that part.

    Beyond `requests_per_s` (a token bucket of a second's worth) it answers 503 with
    `retry_after_s`, and so it does to all between the two times of `outage_s`.
    One answer in `1 / stall_chance` goes silent for `stall_s` before its bytes.
    """

    rate: float
    first_byte_s: float
    link: float = 1.7e9
    spread: float = 0.1
    connect_s: float = 0.0
    outage_s: tuple[float, float] = (0.0, 0.0)
    requests_per_s: float | None = None
    retry_after_s: float | None = None
    stall_chance: float = 0.0
    stall_s: float = 20.0


@dataclass(slots=True)
class _Transfer:
    job: jobs.ReadJob
    sent: int = 0
    told: int = 0
    told_s: float = 0.0
    due: int = MIB


class ShapedWorkers:
    """Threads in front of one origin. They tell of landed bytes as `engine.worker` does.

    The mutable state of ShapedWorkers is the transfers in a heap by the point of the common curve
    at which their next MiB is complete, the curve, and the origin's bucket of requests.
    """

    def __init__(self, origin: Origin, capacity: int, seed: int) -> None:
        self.origin = origin
        self.capacity = capacity
        self.busy = 0
        self.busy_max = 0
        self.throttled = 0
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._warm = 0
        self._curve = 0.0
        self._seen_s = 0.0
        self._active: list[tuple[float, int, _Transfer]] = []
        self._tokens = origin.requests_per_s or 0.0
        self._tokens_s = 0.0
        self._change = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._on_read: Callable[[jobs.Message], None] = lambda message: None

    @property
    def idle(self) -> int:
        return self.capacity - self.busy

    def new_job(self) -> int:
        return next(self._numbers)

    def start_read(self, job: jobs.ReadJob) -> None:
        assert self.idle > 0 and self._nursery is not None
        self.busy += 1
        self.busy_max = max(self.busy_max, self.busy)
        wait_s = self.origin.first_byte_s * (1 + self.origin.spread * self._chance.uniform(-1, 1))
        if self.busy > self._warm:
            self._warm = self.busy
            wait_s += self.origin.connect_s
        if self._chance.random() < self.origin.stall_chance:
            wait_s += self.origin.stall_s
        self._nursery.start_soon(self._begin, job, wait_s)

    async def call(self, op: str, **arguments: object) -> tuple[object, list[object]]:
        raise CorruptData(f"no {op} in this simulation: {arguments}")

    async def run(self, nursery: trio.Nursery, on_read: Callable[[jobs.Message], None]) -> None:
        """Move bytes for ever."""
        self._nursery, self._on_read = nursery, on_read
        while True:
            wake_s = float("inf")
            if self._active:
                wake_s = self._seen_s + (self._active[0][0] - self._curve) / self._speed()
            with trio.move_on_at(wake_s):
                await self._change.wait()
            self._change = trio.Event()
            self._advance()

    async def _begin(self, job: jobs.ReadJob, wait_s: float) -> None:
        await trio.sleep(wait_s)
        if not self._admitted():
            self.throttled += 1
            self.busy -= 1
            error = StoreThrottled("slow down", self.origin.retry_after_s)
            self._on_read({"id": job.job, "error": to_wire(error)})
            return
        self._advance()
        transfer = _Transfer(job, told_s=trio.current_time())
        self._push(transfer)
        self._change.set()

    def _admitted(self) -> bool:
        now = trio.current_time()
        if self.origin.outage_s[0] <= now < self.origin.outage_s[1]:
            return False
        per_s = self.origin.requests_per_s
        if per_s is None:
            return True
        self._tokens = min(per_s, self._tokens + (now - self._tokens_s) * per_s)
        self._tokens_s = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _speed(self) -> float:
        return min(self.origin.rate, self.origin.link / max(1, len(self._active)))

    def _push(self, transfer: _Transfer) -> None:
        piece = min(MIB, transfer.job.extent.size - transfer.sent)
        wobble = 1 + self.origin.spread * self._chance.uniform(-1, 1)
        point = self._curve + piece * wobble
        heapq.heappush(self._active, (point, transfer.job.job, transfer))

    def _advance(self) -> None:
        """Bring the curve to now, and tell of every MiB that is complete."""
        now = trio.current_time()
        self._curve += (now - self._seen_s) * self._speed()
        self._seen_s = now
        while self._active and self._active[0][0] <= self._curve + 1:
            _, _, transfer = heapq.heappop(self._active)
            size = transfer.job.extent.size
            transfer.sent = min(size, transfer.sent + MIB)
            if transfer.sent < size:
                self._push(transfer)
                if transfer.sent >= transfer.due or now - transfer.told_s >= LANDED_EVERY_S:
                    transfer.due, transfer.told_s = 2 * transfer.sent, now
                    self._on_read({"id": transfer.job.job, "landed": transfer.sent})
            else:
                self.busy -= 1
                self._on_read({"id": transfer.job.job, "ok": None})


@dataclass(frozen=True, slots=True)
class Load:
    """What a load cost."""

    seconds: float
    size: int
    busy_max: int
    throttled: int
    counters: Counters
    pace: dict[str, int]

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds


def budget_for(connections: int | None = None, memory: int = 2 * GIB) -> ArenaBudget:
    """The budget of a mount with these settings."""
    return arena_budget(memory, 2, MIB, None if connections is None else 8 * MIB, connections)


async def _load(
    origin: Origin, size: int, budget: ArenaBudget, seed: int, busy: Callable[[], bool], files: int
) -> Load:
    arena = Arena(budget)
    counters = Counters()
    workers = ShapedWorkers(origin, budget.connections_max, seed)
    table = FileTable(MIB, budget.range_blocks_max)
    slots = Slots(budget, table, counters)
    pace = Pace(budget, counters, busy)
    fetcher = Fetcher(
        budget, slots, workers, counters, lambda file: None, lambda blocks: None, pace
    )

    def closed(file: File) -> None:
        prefetcher.closed(file)

    hinted = HintedPlans(table, slots, closed, fetcher.wake)
    prefetcher = Prefetcher(table, hinted, 4 * MIB, budget.lead_first // 4, fetcher.wake)
    pagecache = PageCache(arena, slots, counters, lambda file: None, lambda: 0, fetcher.wake)
    reader = Reader(arena, slots, fetcher, prefetcher, counters, pagecache, 600.0)

    async def read(number: int) -> None:
        each = size // files
        file = table.opened(ObjectMeta(ObjectId(f"{number}.safetensors", "v"), each, 0))
        file.inspected, file.data_start = True, 100
        for offset in range(8 * MIB, each, MIB):
            assert len(await reader.read(file, offset, MIB)) == min(MIB, each - offset)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, nursery, fetcher.on_read)
            nursery.start_soon(fetcher.run, prefetcher.next_run)
            began = trio.current_time()
            async with trio.open_nursery() as readers:
                for number in range(files):
                    readers.start_soon(read, number)
            seconds = trio.current_time() - began
            load = Load(
                seconds, size, workers.busy_max, workers.throttled, counters, pace.statistics()
            )
            nursery.cancel_scope.cancel()
    finally:
        arena.close()
    return load


def load(
    origin: Origin,
    size: int,
    budget: ArenaBudget | None = None,
    seed: int = 1,
    busy: Callable[[], bool] = lambda: False,
    files: int = 1,
) -> Load:
    """Read a shard of `size` bytes from start to end with one reader that is infinitely fast."""
    random.seed(seed)  # the fetcher's jitter
    trio._core._run._r.seed(seed)  # the order of tasks in a step
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_load, origin, size, budget or budget_for(), seed, busy, files, clock=clock)


def main() -> None:
    """Print the default beside every fixed number of connections, origin by origin, in MB/s."""
    size, numbers = 8 * GIB, (8, 16, 32, 64, 128, 192, 256)
    print("MB/s  ms |", *(f"{number:5}" for number in numbers), "| auto  limit  of best")
    for rate, first_byte_ms in itertools.product((10, 80, 400), (5, 25, 100)):
        origin = Origin(rate * MB, first_byte_ms / 1000)
        fixed = [load(origin, size, budget_for(number)).rate for number in numbers]
        auto = load(origin, size)
        cells = " ".join(f"{value / MB:5.0f}" for value in fixed)
        part = auto.rate / max(fixed)
        print(
            f"{rate:4} {first_byte_ms:3} | {cells} | {auto.rate / MB:4.0f} {auto.pace['limit']:6}"
            f"  {part:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
