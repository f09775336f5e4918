"""One seed: readers, loaders, peers, writers and a store in trouble at once; then the store heals.

What is demanded: while the store is in trouble, right bytes or a documented error (safety); once it
has healed, every read and every plan comes to its end, and every name leads to what there is now
(liveness); once all is closed, every gauge is back at zero. The one idea: a seed decides
everything, the order in which tasks run included, so what it found once it finds again.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio
import trio._core._run as trio_run
import trio.testing

from fusefs.errors import (
    CorruptData,
    FusefsError,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
)
from tests.engine.simulated import BLOCK
from tests.reference.actions import Action, Delete, Fail, Leave, Lose, Put, Stall
from tests.reference.histories import random_action
from tests.reference.model import (
    DEADLINE_S,
    KEYS,
    SIZES,
    TTL_S,
    World,
    act,
    close,
    list_all,
    open_file,
    open_world,
    read,
    settle,
)
from tests.reference.peers import SimulatedPeer

SHARDS = tuple(f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5))
ALL_KEYS = (*KEYS, *SHARDS)
SHARD_BYTES = 60 * BLOCK + 33
TROUBLE_S = (20.0, 200.0)
"""How long the store is in trouble, at least and at most, by the seed."""

READ_BYTES = 2 * BLOCK
"""A READ that is not aligned touches three blocks; as many need room at once."""

ACTORS = 6
LOADERS = 2
HISTORY = 60
"""Actions that are told when a seed fails."""


class Failed(Exception):
    """A seed failed; the message tells what happened last."""


@dataclass(slots=True)
class Outcome:
    """What a seed has done. `digest` is of all that happened, and when."""

    seed: int
    virtual_s: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    counters: dict[str, int] = field(default_factory=dict)
    digest: str = ""


class Simulation:
    """One seed at work.

    The mutable state of Simulation is the dice, what happened, and whether the trouble is over.
    """

    def __init__(self, seed: int) -> None:
        self.outcome = Outcome(seed)
        self.recent: deque[str] = deque(maxlen=HISTORY)
        self._chance = random.Random(seed)
        self._digest = hashlib.sha256()
        self._over = False

    async def run(self) -> None:
        """Trouble, healing, and the end. AssertionError where a promise is broken."""
        chance = self._chance
        slots, capacity = chance.choice([16, 24, 64]), chance.choice([2, 6])
        async with open_world(slots, capacity, guided=chance.random() < 0.5) as world:
            for key in ALL_KEYS:
                world.put(key, SHARD_BYTES if key in SHARDS else chance.choice(SIZES[1:]))
            world.excused = True
            trouble_s = chance.uniform(*TROUBLE_S)
            async with trio.open_nursery() as nursery:
                for number in range(ACTORS):
                    nursery.start_soon(self._actor, world, number)
                for _ in range(LOADERS):
                    nursery.start_soon(self._loader, world)
                nursery.start_soon(self._saboteur, world)
                await trio.sleep(trouble_s)
                self._over = True
                self._heal(world)
            await self._live_on(world)
            await settle(world)
            self.outcome.virtual_s = trio.current_time()
            self.outcome.counters = world.engine.counters.snapshot()
            self._note("end", self.outcome.counters)
            self.outcome.digest = self._digest.hexdigest()

    def _note(self, who: str, what: object) -> None:
        text = f"{trio.current_time():9.3f} {who}: {what}"
        self.recent.append(text)
        self._digest.update(text.encode())

    async def _actor(self, world: World, number: int) -> None:
        """Does this and that."""
        while not self._over:
            action = random_action(self._chance)
            if isinstance(action, Put | Delete) and self._chance.random() < 0.7:
                continue  # else nothing would ever be read to its end
            if isinstance(action, Fail | Lose | Stall):
                continue  # the saboteur's
            await self._act(world, f"actor {number}", action)
            await trio.sleep(self._chance.expovariate(2.0))

    async def _act(self, world: World, who: str, action: Action) -> None:
        self._note(who, action)
        self.outcome.done[type(action).__name__.lower()] += 1
        await act(world, action)

    async def _loader(self, world: World) -> None:
        """Reads one shard after the other from its begin to its end, as loaders do."""
        while not self._over:
            for key in SHARDS:
                handle = await open_file(world, key)
                if handle is None or self._over:
                    break
                self._note("loader", key)
                self.outcome.done["shard"] += 1
                handle.reading += 1
                cached, piece = (
                    self._chance.random() < 0.5,
                    self._chance.choice([BLOCK, READ_BYTES]),
                )
                for offset in range(0, handle.size, piece):
                    await read(world, handle, offset, piece, cached)
                handle.reading -= 1
                if handle in world.handles and not handle.reading:
                    close(world, handle)
            await trio.sleep(self._chance.uniform(0.1, 30.0))

    async def _saboteur(self, world: World) -> None:
        """Sees to it that hardly anything goes well."""
        chance, bucket, workers = self._chance, world.engine.bucket, world.engine.workers
        while not self._over:
            kind = chance.choice(["faults", "faults", "lost", "late", "names", "gone", "peace"])
            self._note("saboteur", kind)
            self.outcome.done[f"trouble: {kind}"] += 1
            match kind:
                case "faults":
                    bucket.faults.extend(self._fault() for _ in range(chance.randrange(1, 12)))
                case "lost":
                    workers.lose_next += chance.randrange(1, 5)
                case "late":
                    workers.delays.extend(chance.choice([0.0, 0.5, 3.0, 20.0]) for _ in range(6))
                case "names":
                    world.names.fail_next += chance.randrange(1, 4)
                case "gone":
                    bucket.faults.extend([StoreUnavailable("simulated")] * chance.randrange(80))
            await trio.sleep(chance.expovariate(0.5))

    def _fault(self) -> FusefsError | None:
        kinds = (StoreUnavailable, StoreThrottled, StoreTimeout, CorruptData)
        return None if self._chance.random() < 0.2 else self._chance.choice(kinds)("simulated")

    def _heal(self, world: World) -> None:
        self._note("store", "heals")
        world.engine.bucket.faults.clear()
        world.engine.workers.delays.clear()
        world.engine.workers.lose_next = 0
        world.names.fail_next = 0

    async def _live_on(self, world: World) -> None:
        """Everything that was asked for comes, in bounded time; everything new is as it should."""
        with trio.fail_after(DEADLINE_S):
            for handle in tuple(world.handles):  # what was given up meanwhile is asked for anew
                handle.reading += 1
                for offset in range(0, handle.size, READ_BYTES):
                    await read(world, handle, offset, READ_BYTES)
                handle.reading -= 1
        world.excused = False
        for peer in world.peers:
            await self._drain(world, peer)
        await trio.sleep(TTL_S + 1)
        for key in ALL_KEYS:
            new = await open_file(world, key)
            assert (None if new is None else new.version) == world.current(key), f"{key} is old"
            if new is not None:
                for offset in range(0, new.size, READ_BYTES):
                    await read(world, new, offset, READ_BYTES)
        await list_all(world)

    async def _drain(self, world: World, peer: SimulatedPeer) -> None:
        """A peer that takes and gives back gets all of its plan, or hears what failed."""
        with trio.fail_after(DEADLINE_S):
            while "slots" in peer.open_plans and "slots" not in peer.done | peer.failed:
                peer.take()
                peer.give_back(len(peer.held))
                await trio.sleep(0.05)
        await self._act(world, "peer", Leave(world.peers.index(peer)))


def simulate(seed: int) -> Outcome:
    """Run one seed. Raises Failed."""
    simulation = Simulation(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with _decided_by(seed):
        try:
            trio.run(simulation.run, clock=clock)
        except Exception as error:
            happened = "\n".join(simulation.recent)
            raise Failed(f"seed {seed} failed; what happened last:\n{happened}") from error
    return simulation.outcome


@contextmanager
def _decided_by(seed: int) -> Iterator[None]:
    """Let `seed` decide what is left to chance: jitter, and which task goes first."""
    before, sorts = random.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    random.seed(seed)
    trio_run._r.seed(seed)
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - final to mypy
    try:
        yield
    finally:
        random.setstate(before)
        setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", sorts)  # noqa: B010
