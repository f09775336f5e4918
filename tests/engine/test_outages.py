"""A store that goes away and comes back, on a virtual clock: plans, deadlines, and who asks."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fusefs.engine.guide import NAMES_DEADLINE_S, Names
from fusefs.engine.hedges import PREFETCH_ATTEMPTS_MAX
from fusefs.engine.hinted import WarmPlan
from fusefs.errors import AccessDenied, StoreTimeout, StoreUnavailable
from fusefs.policy.missed import AGAIN_S, AGAIN_WAIT_S
from fusefs.policy.plan import Priority
from fusefs.policy.setback import PAUSE_MAX_S
from fusefs.telemetry.counters import Counters
from tests.conftest import ExpectedWarnings
from tests.engine.simulated import BLOCK, Engine, content, open_engine

SIZE = 2000 * BLOCK
KEY = "w.safetensors"
LEAD_BLOCKS = 128
"""So much is fetched ahead of a reader that stands still: a range for each of 16 connections."""


async def begin(engine: Engine) -> object:
    """Start a shard; some of it is there and more on its way."""
    engine.bucket.put(KEY, SIZE)
    file = engine.open(KEY)
    file.inspected, file.data_start = True, 100
    await engine.read(file, 10 * BLOCK, BLOCK)
    return file


class Outage:
    """The store is away until `end`; `requests` is how often it was asked."""

    def __init__(self, engine: Engine, error: Exception) -> None:
        self._engine = engine
        self._before = engine.counters.requests_read
        engine.bucket.faults.extend([error] * 100_000)  # type: ignore[list-item]

    @property
    def requests(self) -> int:
        return self._engine.counters.requests_read - self._before

    def end(self) -> None:
        self._engine.bucket.faults.clear()


async def test_a_plan_goes_on_after_an_outage(autojump_clock: trio.testing.MockClock) -> None:
    """Once the reader's block has come the shard streams in as before, not block by block."""
    async with open_engine(slots=4096, capacity=16, deadline_s=300.0) as engine:
        await begin(engine)
        file = engine.open(KEY)
        outage = Outage(engine, StoreUnavailable("gone"))
        results: list[bytes] = []

        async def read() -> None:
            results.append(await engine.read(file, 1500 * BLOCK, BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(60.0)
            assert not results
            outage.end()
        assert results == [content(KEY, 1, SIZE)[1500 * BLOCK : 1501 * BLOCK]]
        want = content(KEY, 1, SIZE)
        began, before = trio.current_time(), engine.counters.misses
        for index in range(10, 1500):
            start = index * BLOCK
            assert await engine.read(file, start, BLOCK) == want[start : start + BLOCK]
        assert engine.counters.misses - before <= 10
        one_at_a_time = 1490 * (engine.workers.first_byte_s + engine.workers.block_s)
        assert trio.current_time() - began < one_at_a_time / 10


async def test_a_plan_goes_on_although_nobody_waited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A loader that computed during the outage finds the rest on its way again soon after it."""
    async with open_engine(slots=4096, capacity=16) as engine:
        await begin(engine)
        outage = Outage(engine, StoreUnavailable("gone"))
        await trio.sleep(60.0)
        before = engine.slots.statistics()
        assert before["ready"] < LEAD_BLOCKS / 2
        outage.end()
        await trio.sleep(2 * PAUSE_MAX_S)
        assert engine.slots.statistics()["ready"] >= LEAD_BLOCKS


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), AccessDenied("expired")])
async def test_an_outage_is_no_storm_of_requests(
    autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    """While nothing arrives, prefetch is a probe now and then, however much is wanted."""
    async with open_engine(slots=4096, capacity=16) as engine:
        await begin(engine)
        outage = Outage(engine, error)
        await trio.sleep(20.0)
        first = outage.requests
        assert first <= 16 * PREFETCH_ATTEMPTS_MAX + 20
        await trio.sleep(100.0)
        assert outage.requests - first <= (100.0 / PAUSE_MAX_S + 1) * PREFETCH_ATTEMPTS_MAX


async def test_a_read_does_not_queue_behind_retries_of_prefetch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With every prefetch stalled and failing, a read costs one round trip once it may."""
    async with open_engine(slots=4096, capacity=8) as engine:
        await begin(engine)
        other = engine.bucket.put("other.bin", 100 * BLOCK)
        file = engine.open("other.bin")
        engine.bucket.faults.extend([StoreUnavailable("reset")] * 8)
        await trio.sleep(0.05)
        engine.workers.delays.extend([20.0] * 4)  # those that retries would take
        began = trio.current_time()
        engine.workers.delays.clear()
        data = await engine.read(file, 50 * BLOCK, BLOCK)
        assert data == content(other.id.key, 1, 100 * BLOCK)[50 * BLOCK : 51 * BLOCK]
        assert trio.current_time() - began < 1.0


async def test_what_one_file_does_not_get_others_do(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """A shard that is refused for good costs a request now and then, and slows nothing down."""
    async with open_engine(slots=4096, capacity=8) as engine:
        await begin(engine)
        engine.bucket.put("denied.safetensors", SIZE)
        expect_warning("fetching denied.safetensors failed")
        denied = engine.open("denied.safetensors")
        denied.inspected, denied.data_start = True, 100
        engine.bucket.denied.add(denied.meta.id.key)
        with pytest.raises(AccessDenied):
            await engine.read(denied, 10 * BLOCK, BLOCK)
        file = engine.open(KEY)
        for index in range(10, 1000):
            await engine.read(file, index * BLOCK, BLOCK)
        assert engine.counters.misses <= 20
        await trio.sleep(60.0)
        asked = sum(key == denied.meta.id.key for key, _ in engine.bucket.log)
        assert asked <= 30


async def test_the_kernels_second_question_does_not_wait_a_second_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A page asked for right after its readahead reached the deadline fails soon; later, it waits.

    A page fault would otherwise take several deadlines before it becomes a SIGBUS.
    """
    async with open_engine(deadline_s=30.0) as engine:
        engine.bucket.put("a.bin", 8 * BLOCK)
        file = engine.open("a.bin")
        outage = Outage(engine, StoreUnavailable("gone"))
        began = trio.current_time()
        for size in (4 * BLOCK, BLOCK, BLOCK, BLOCK):
            with pytest.raises(StoreTimeout):
                await engine.read(file, 0, size)
        assert trio.current_time() - began <= 30.0 + 3 * AGAIN_WAIT_S + 0.1
        await trio.sleep(2 * AGAIN_S)
        began = trio.current_time()
        with pytest.raises(StoreTimeout):
            await engine.read(file, 0, BLOCK)
        assert trio.current_time() - began == pytest.approx(30.0, abs=0.1)
        outage.end()
        assert await engine.read(file, 0, BLOCK) == content("a.bin", 1, 8 * BLOCK)[:BLOCK]
        assert engine.slots.statistics()["pinned"] == 0


async def test_a_plan_of_hints_without_a_listener_goes_on_after_an_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What a verb asked for arrives, although the store was away for a minute in between."""
    async with open_engine(slots=256, capacity=8) as engine:
        size = 60 * BLOCK
        plan = WarmPlan(Priority.WARM, in_order=True, listener=None)
        engine.hinted.add(plan)
        part = engine.hinted.part(plan, engine.bucket.put("a.bin", size), 5000)
        outage = Outage(engine, StoreUnavailable("gone"))
        plan.want(part, [(0, size)])
        engine.hinted.look_again()
        await trio.sleep(60.0)
        assert part.error is None and plan.ready_bytes == 0
        outage.end()
        await trio.sleep(2 * PAUSE_MAX_S)
        assert plan.ready_bytes == size


async def test_a_file_whose_plan_of_hints_failed_is_read_like_any_other(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Once the plan was told that it failed, reads of the shard start it: not block by block."""
    async with open_engine(slots=4096, capacity=16) as engine:
        expect_warning("fetching w.safetensors failed")
        meta = engine.bucket.put(KEY, SIZE)
        plan = WarmPlan(Priority.HINTED, in_order=True, listener=Deaf())
        engine.hinted.add(plan)
        part = engine.hinted.part(plan, meta, 5000)
        engine.bucket.denied.add(KEY)
        plan.want(part, [(100 * BLOCK, 1900 * BLOCK)])
        engine.hinted.look_again()
        await trio.sleep(1.0)
        assert isinstance(part.error, AccessDenied)
        file = engine.open(KEY)
        file.inspected, file.data_start = True, 100
        with pytest.raises(AccessDenied):
            await engine.read(file, 200 * BLOCK, BLOCK)
        engine.bucket.denied.clear()
        for index in range(200, 1000):
            await engine.read(file, index * BLOCK, BLOCK)
        assert engine.counters.misses <= 20


class Deaf:
    """A listener that takes no note."""

    def ready(self, inode: int, extents: object) -> None:
        """See `Listener`."""

    def failed(self, inode: int, error: object) -> None:
        """See `Listener`."""


class Caller:
    """A pool whose store never answers; `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def call(self, op: str, **arguments: object) -> tuple[object, list[object]]:
        self.asked += 1
        await trio.sleep(1.0)
        raise StoreUnavailable("refused")


async def test_names_have_a_deadline_and_nobody_waits_for_it_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """StoreTimeout within the reads' deadline if that is shorter; who comes next hears it soon."""
    names = Names(Caller(), Counters(), lambda after_s: None, read_deadline_s=8.0)
    began = trio.current_time()
    for _ in range(10):
        with pytest.raises(StoreTimeout, match="within 8 s"):
            await names.list_page("dir/", None)
    assert trio.current_time() - began == pytest.approx(8.0 + 9 * AGAIN_WAIT_S, abs=0.1)
    began = trio.current_time()
    with pytest.raises(StoreTimeout):
        await Names(Caller(), Counters(), lambda after_s: None, 1000.0).head("key")
    assert trio.current_time() - began == pytest.approx(NAMES_DEADLINE_S, abs=0.1)
