"""Histories of a bucket and its readers, played against the real tree and engine.

The model is two dictionaries: what every version of every object holds, and which version each
handle pinned. Its sentences: a read gives exactly the pinned version's bytes; or ESTALE, if that
version is no longer current; a name leads to a version that was current within the TTL; afterwards
nothing is left in flight and nobody waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import trio
import trio.testing

from fusefs.config import TreeConfig
from fusefs.engine.blocks import File
from fusefs.errors import ObjectChanged, ObjectNotFound, StoreUnavailable
from fusefs.objects import ListPage, ObjectMeta
from fusefs.tree.inodes import ROOT_INODE
from fusefs.tree.tree import Tree
from tests.engine.simulated import BLOCK, Engine, content, open_engine

KEYS = ("a.bin", "b.safetensors")
SIZES = (0, 1, BLOCK, 5 * BLOCK + 17, 40 * BLOCK)
TTL_S = 30.0


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class Open:
    key: str


@dataclass(frozen=True, slots=True)
class Close:
    handle: int


@dataclass(frozen=True, slots=True)
class Read:
    """Several reads at once: (handle, offset, size) each."""

    reads: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Fail:
    times: int


@dataclass(frozen=True, slots=True)
class Lose:
    """The next read's worker dies half-way."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The next reads are late, so that they are hedged."""

    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


Action = Put | Delete | Open | Close | Read | Fail | Lose | Stall | Sleep
Mutate = Callable[[Engine], None]


@dataclass(slots=True)
class Handle:
    """An open file and the version it pinned."""

    file: File
    inode: int
    version: int
    size: int


@dataclass(slots=True)
class World:
    """The model beside the thing. `current` is (version, since when) by key; None: deleted."""

    engine: Engine
    tree: Tree
    handles: list[Handle] = field(default_factory=list)
    past: dict[str, list[tuple[int | None, float]]] = field(default_factory=dict)

    def changed(self, key: str, version: int | None) -> None:
        self.past.setdefault(key, []).append((version, trio.current_time()))

    def believable(self, key: str) -> set[int | None]:
        """Versions a name may lead to now: the current one, and those replaced within the TTL."""
        past = [(None, float("-inf")), *self.past.get(key, [])]
        now = trio.current_time()
        result = {past[-1][0]}
        for (version, _), (_, until) in itertools.pairwise(past):
            if until >= now - TTL_S:
                result.add(version)
        return result


class Names:
    """A lister on the simulated bucket."""

    def __init__(self, engine: Engine) -> None:
        self._bucket = engine.bucket

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        await trio.sleep(0.01)
        metas = tuple(self._bucket.meta(key) for key in sorted(self._bucket.objects))
        return ListPage(metas, (), None)

    async def head(self, key: str) -> ObjectMeta:
        await trio.sleep(0.01)
        if key not in self._bucket.objects:
            raise ObjectNotFound(key)
        return self._bucket.meta(key)


async def play(history: list[Action], mutate: Mutate = lambda engine: None) -> None:
    """Play a history; AssertionError where the thing and the model part."""
    async with open_engine(slots=24, capacity=6, deadline_s=600) as engine:
        mutate(engine)
        tree = Tree(
            Names(engine), "", TreeConfig(ttl_s=TTL_S, negative_ttl_s=TTL_S),
            engine.counters, trio.current_time,
        )  # fmt: skip
        world = World(engine, tree)
        for action in history:
            await _act(world, action)
        await _settle(world)


async def _act(world: World, action: Action) -> None:
    bucket = world.engine.bucket
    match action:
        case Put(key, size):
            bucket.put(key, size)
            world.changed(key, bucket.versions[key])
        case Delete(key):
            if bucket.objects.pop(key, None) is not None:
                world.changed(key, None)
        case Open(key):
            await _open(world, key)
        case Close(number):
            if world.handles:
                _close(world, world.handles.pop(number % len(world.handles)))
        case Read(reads):
            async with trio.open_nursery() as nursery:
                for number, offset, size in reads:
                    if world.handles:
                        handle = world.handles[number % len(world.handles)]
                        nursery.start_soon(_read, world, handle, offset, size)
        case Fail(times):
            bucket.faults.extend([StoreUnavailable("simulated")] * times)
        case Lose():
            world.engine.workers.lose_next += 1
        case Stall(delays):
            world.engine.workers.delays.extend(delays)
        case Sleep(seconds):
            await trio.sleep(seconds)


async def _open(world: World, key: str) -> None:
    try:
        entry = await world.tree.lookup(ROOT_INODE, key.encode())
    except ObjectNotFound:
        assert None in world.believable(key), f"{key} exists, and was not found"
        return
    assert entry.meta is not None
    version = int(entry.meta.id.etag[1:])
    assert version in world.believable(key), f"{key} leads to version {version}"
    world.tree.remember(entry)
    if entry.stale:
        return
    world.tree.acquire(entry.inode)
    file = world.engine.files.opened(entry.meta)
    file.inspected, file.data_start = True, 16
    world.handles.append(Handle(file, entry.inode, version, entry.meta.size))


def _close(world: World, handle: Handle) -> None:
    world.engine.files.closed(handle.file)
    world.engine.prefetcher.closed(handle.file)
    world.tree.release(handle.inode)


async def _read(world: World, handle: Handle, offset: int, size: int) -> None:
    key = handle.file.meta.id.key
    want = content(key, handle.version, handle.size)[offset : offset + size]
    try:
        got = await world.engine.read(handle.file, offset, size)
    except ObjectChanged:
        now = world.past[key][-1][0]
        assert now != handle.version, f"{key}: version {now} is current, and was ESTALE"
        world.tree.mark_stale(handle.file.meta.id)
        return
    assert got == want, f"{key}@{handle.version} [{offset}, +{size}): other bytes"


async def _settle(world: World) -> None:
    """Once everything is closed and time has passed, no gauge is left standing."""
    for handle in world.handles:
        _close(world, handle)
    await trio.sleep(1000)
    gauges = world.engine.slots.statistics()
    assert gauges["fetching"] == 0
    assert world.engine.workers.busy == 0
    owners = [block for block in world.engine.slots._owners if block is not None]
    assert all(block.waiters == 0 for block in owners)
    assert len({(id(b.file), b.index) for b in owners}) == len(owners)
