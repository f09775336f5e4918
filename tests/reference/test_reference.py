"""Random histories agree with the model, and planted mutants do not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.engine.blocks import Block, FileTable, State
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.fetcher import log as fetcher_log
from fusefs.engine.slots import Slots
from fusefs.objects import ObjectId
from fusefs.policy.slots import Rank
from tests.engine.simulated import BLOCK, Engine
from tests.reference.model import (
    KEYS,
    SIZES,
    Action,
    Close,
    Delete,
    Fail,
    Lose,
    Open,
    Put,
    Read,
    Sleep,
    Stall,
    play,
)

# Two files are there and both open when a history begins, one of them in its second version.
BEGINNING: list[Action] = [
    Put(KEYS[0], SIZES[4]), Open(KEYS[0]), Read(((0, 0, BLOCK),)),
    Put(KEYS[1], SIZES[3]), Put(KEYS[1], SIZES[4]), Sleep(40), Open(KEYS[1]),
]  # fmt: skip

READS = st.tuples(
    st.integers(0, 7), st.integers(0, SIZES[-1] + 10), st.sampled_from([1, 100, BLOCK, 9000])
)
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(Read, st.lists(READS, min_size=1, max_size=6).map(tuple)),
    st.builds(Open, st.sampled_from(KEYS)),
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from(SIZES)),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.builds(Close, st.integers(0, 7)),
    st.builds(Fail, st.integers(1, 5)),
    st.just(Lose()),
    st.builds(Stall, st.lists(st.sampled_from([0.0, 1.0, 3.0, 20.0]), max_size=4).map(tuple)),
    st.builds(Sleep, st.sampled_from([0.001, 0.03, 1.0, 31.0, 70.0])),
)
EXPECTED = "changed in the store while it was open|fetching .* failed"


def run(history: list[Action], mutate: Callable[[Engine], None] = lambda engine: None) -> None:
    """Play one history on a virtual clock."""
    trio.run(play, BEGINNING + history, mutate, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed objects are what histories are about: what is logged of them is no news here."""
    monkeypatch.setattr(fetcher_log, "disabled", True)


@pytest.mark.usefixtures("quiet")
@given(history=st.lists(ACTIONS, max_size=30), schedule=st.random_module())
@settings(max_examples=150)
def test_histories_agree_with_the_model(history: list[Action], schedule: object) -> None:
    """A read gives the pinned version's bytes or a documented error, whatever happens."""
    run(history)


def random_history(seed: int) -> list[Action]:
    """A busy history: many reads at once, overwrites, failures."""
    chance = random.Random(seed)
    history: list[Action] = []
    for _ in range(40):
        kind = chance.random()
        key = chance.choice(KEYS)
        if kind < 0.55:
            reads = tuple(
                (chance.randrange(8), chance.randrange(SIZES[-1]), chance.choice([100, 9000]))
                for _ in range(chance.randrange(1, 12))
            )
            history.append(Read(reads))
        elif kind < 0.75:
            history.append(Open(key))
        elif kind < 0.85:
            history.append(Put(key, chance.choice(SIZES[2:])))
        elif kind < 0.93:
            history.append(Sleep(chance.choice([0.001, 31.0])))
        else:
            late = tuple(chance.choice([0.0, 3.0, 20.0]) for _ in range(4))
            troubles: list[Action] = [Fail(2), Lose(), Delete(key), Stall(late), Stall(late)]
            history.append(chance.choice(troubles))
    return history


def ready_too_early(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks count as landed when their request starts."""
    original = Fetcher._start

    def start(self: Fetcher, blocks: list[Block], *rest: object) -> bool:
        started = original(self, blocks, *rest)  # type: ignore[arg-type]
        for block in blocks:
            if block.state is State.FETCHING:
                block.settle(State.READY)
        return started

    monkeypatch.setattr(Fetcher, "_start", start)


def no_version_in_the_table(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of an object share one file."""
    original = FileTable.get

    def get(self: FileTable, meta: object) -> object:
        for (key, _), file in self._files.items():
            if key == meta.id.key:  # type: ignore[attr-defined]
                return file
        return original(self, meta)  # type: ignore[arg-type]

    monkeypatch.setattr(FileTable, "get", get)


def waiters_do_not_pin(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of blocks that somebody waits for, or that are in flight, may be taken."""
    monkeypatch.setattr(Block, "rank", lambda self, now: Rank.FREE)


def a_loser_gives_up_its_slot(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a hedge has won a block, the slot that the late run still writes to is free."""
    original = Slots.exchange

    def exchange(self: Slots, one: Block, other: Block) -> None:
        original(self, one, other)
        for block in (one, other):
            if block.spare:
                self.vacate(block)

    monkeypatch.setattr(Slots, "exchange", exchange)


def requests_without_a_version(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked for whatever is current."""
    bucket = engine.bucket
    original = type(bucket).read

    def read(self: object, id: ObjectId, extent: object) -> bytes:
        if id.key in bucket.objects:
            id = ObjectId(id.key, bucket.meta(id.key).id.etag)
        return original(bucket, id, extent)  # type: ignore[arg-type]

    monkeypatch.setattr(type(bucket), "read", read)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "mutant",
    [
        ready_too_early,
        no_version_in_the_table,
        waiters_do_not_pin,
        a_loser_gives_up_its_slot,
        requests_without_a_version,
    ],
)
def test_planted_mutants_are_caught(
    mutant: Callable[[Engine, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is sharp enough to see each of the classic mistakes."""
    for seed in range(200):
        with monkeypatch.context() as planted:
            if _is_caught(random_history(seed), lambda engine: mutant(engine, planted)):
                return
    pytest.fail(f"{mutant.__name__} survived 200 histories")


def _is_caught(history: list[Action], mutate: Callable[[Engine], None]) -> bool:
    """Whether the model objects, or the engine's own bookkeeping breaks."""
    try:
        run(history, mutate)
    except BaseExceptionGroup as group:
        return group.subgroup((AssertionError, KeyError, ValueError)) is not None
    return False


@pytest.mark.usefixtures("quiet")
def test_random_histories_without_a_mutant_pass() -> None:
    """The same histories agree with the model when nothing is planted."""
    for seed in range(40):
        run(random_history(seed))
        assert random_history(seed) == random_history(seed)
