"""Where histories come from: strategies that shrink, and busy ones from a seed."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.engine.simulated import BLOCK
from tests.reference.actions import (
    Action,
    Close,
    Delete,
    Evict,
    Fail,
    Hint,
    Leave,
    List,
    Lose,
    Open,
    Put,
    Read,
    Sleep,
    Stall,
    Take,
    Wait,
)
from tests.reference.model import EIGHTHS, KEYS, PEERS, SIZES

MODES = ("slots", "warm")

BEGINNING: list[Action] = [
    Put(KEYS[0], SIZES[4]), Open(KEYS[0]), Read(((0, 0, BLOCK),)),
    Put(KEYS[1], SIZES[3]), Open(KEYS[1]), Put(KEYS[1], SIZES[4]), Sleep(40), Open(KEYS[1]),
]  # fmt: skip
"""Two files are there when a history begins, and both are open: one of them in two versions."""

READS = st.tuples(
    st.integers(0, 7), st.integers(0, SIZES[-1] + 10), st.sampled_from([1, 100, BLOCK, 9000])
)
SHARES = st.integers(0, EIGHTHS)
NUMBERS = st.integers(0, 7)
PEER_NUMBERS = st.integers(0, PEERS - 1)

ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(Read, st.lists(READS, min_size=1, max_size=6).map(tuple), st.booleans()),
    st.builds(Open, st.sampled_from(KEYS)),
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from(SIZES)),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.just(List()),
    st.builds(Close, NUMBERS),
    st.builds(Hint, PEER_NUMBERS, NUMBERS, st.sampled_from(MODES), SHARES, SHARES, st.booleans()),
    st.builds(Wait, PEER_NUMBERS, st.sampled_from(MODES), st.integers(0, 40)),
    st.builds(Take, PEER_NUMBERS, st.integers(0, 6)),
    st.builds(Leave, PEER_NUMBERS),
    st.builds(Evict, st.booleans(), st.booleans()),
    st.builds(Fail, st.integers(1, 5)),
    st.just(Lose()),
    st.builds(Stall, st.lists(st.sampled_from([0.0, 1.0, 3.0, 20.0]), max_size=4).map(tuple)),
    st.builds(Sleep, st.sampled_from([0.001, 0.03, 1.0, 31.0, 70.0])),
)


def random_history(seed: int, length: int = 50) -> list[Action]:
    """A busy history: many reads at once, overwrites, hints, failures."""
    chance = random.Random(seed)
    return [random_action(chance) for _ in range(length)]


def random_action(chance: random.Random) -> Action:
    """One of them; reads more often than anything else."""
    kinds = [
        (36, _read), (14, _open), (10, _put), (16, _hint), (14, _take), (8, _pass), (8, _trouble),
    ]  # fmt: skip
    weights, makers = zip(*kinds, strict=True)
    action: Action = chance.choices(makers, weights)[0](chance)
    return action


def _read(chance: random.Random) -> Action:
    reads = tuple(
        (chance.randrange(8), chance.randrange(SIZES[-1]), chance.choice([100, 9000]))
        for _ in range(chance.randrange(1, 12))
    )
    return Read(reads, chance.random() < 0.4)


def _open(chance: random.Random) -> Action:
    return List() if chance.random() < 0.3 else Open(chance.choice(KEYS))


def _put(chance: random.Random) -> Action:
    return Put(chance.choice(KEYS), chance.choice(SIZES[2:]))


def _hint(chance: random.Random) -> Action:
    first = chance.randrange(EIGHTHS)
    stop = chance.randrange(first, EIGHTHS + 1)
    mode, append = chance.choice(MODES), chance.random() < 0.5
    handle = chance.choice([-1, -1, chance.randrange(8)])  # old ones are stale, most often
    return Hint(chance.randrange(PEERS), handle, mode, first, stop, append)


def _take(chance: random.Random) -> Action:
    peer = chance.randrange(PEERS)
    actions: list[Action] = [
        Take(peer, chance.randrange(6)), Take(peer, 0),
        Wait(peer, chance.choice(MODES), chance.randrange(41)),
    ]  # fmt: skip
    return chance.choice(actions)


def _pass(chance: random.Random) -> Action:
    actions: list[Action] = [
        Sleep(0.001), Sleep(0.03), Sleep(31.0),
        Evict(chance.random() < 0.5, chance.random() < 0.5), Close(chance.randrange(8)),
    ]  # fmt: skip
    return chance.choice(actions)


def _trouble(chance: random.Random) -> Action:
    late = tuple(chance.choice([0.0, 3.0, 20.0]) for _ in range(4))
    troubles: list[Action] = [
        Fail(2), Lose(), Delete(chance.choice(KEYS)), Stall(late), Stall(late),
        Leave(chance.randrange(PEERS)),
    ]  # fmt: skip
    return chance.choice(troubles)
