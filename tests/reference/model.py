"""Histories of a bucket and its readers, played against the real tree, engine and hints.

The model is dictionaries: what every version of every object holds, when it was current, and which
version each handle pinned. Its sentences: a read, a page and a slot give exactly the pinned
version's bytes; or the read is ESTALE, if that version is no longer current; a name leads to a
version that was current within the TTL, and never to one that was seen to be stale; afterwards
nothing is left in flight, held or pinned, and nobody waits.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from fusefs.config import TreeConfig
from fusefs.engine.blocks import File, State
from fusefs.engine.handed import Groups, Pins
from fusefs.errors import (
    CorruptData,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.hints.plans import Engine as HintEngine
from fusefs.objects import ListPage, ObjectMeta
from fusefs.policy.slots import Rank
from fusefs.tree.inodes import ROOT_INODE, Entry
from fusefs.tree.tree import Tree
from tests.engine.simulated import BLOCK, Engine, content, open_engine, shard
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
from tests.reference.kernel import Kernel
from tests.reference.peers import SimulatedPeer

KEYS = ("a.bin", "b.safetensors")
SIZES = (0, 1, BLOCK, 5 * BLOCK + 17, 40 * BLOCK)
SHARDS = "model-"
SHARD_HEAD = 208
"""Bytes of the head that `shard` makes."""
TTL_S = 30.0
PEERS = 2
EIGHTHS = 8
DEADLINE_S = 600.0
"""Of a read: the store's troubles are over long before."""
SETTLED_S = 1000.0
"""Longer than any deadline."""

Mutate = Callable[["World"], None]


@dataclass(slots=True, eq=False)
class Handle:
    """An open file, the version it pinned, and how many read it just now."""

    file: File
    inode: int
    version: int
    size: int
    reading: int = 0


class Names:
    """A lister on the simulated bucket; its answers are as of when it was asked."""

    def __init__(self, engine: Engine) -> None:
        self._bucket = engine.bucket
        self.fail_next = 0

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Lister`."""
        if self.fail_next:
            self.fail_next -= 1
            await trio.sleep(0.01)
            raise StoreUnavailable("simulated")
        metas = tuple(self._bucket.meta(key) for key in sorted(self._bucket.objects))
        await trio.sleep(0.01)
        return ListPage(metas, (), None)

    async def head(self, key: str) -> ObjectMeta:
        """See `Lister`."""
        meta = self._bucket.meta(key) if key in self._bucket.objects else None
        await trio.sleep(0.01)
        if meta is None:
            raise ObjectNotFound(key)
        return meta


@dataclass(slots=True)
class World:
    """The model beside the thing.

    `past` is (version, since when) by key; None: deleted. `data` is what each version holds.
    `guided`: headers are looked at, so the engine knows of shards. `excused`: the store fails so
    often that a read may fail, too, though only as documented.
    """

    engine: Engine
    tree: Tree
    kernel: Kernel
    names: Names
    peers: list[SimulatedPeer] = field(default_factory=list)
    hints: HintEngine | None = None
    handles: list[Handle] = field(default_factory=list)
    past: dict[str, list[tuple[int | None, float]]] = field(default_factory=dict)
    stale: set[tuple[str, int]] = field(default_factory=set)
    inodes: dict[int, bytes] = field(default_factory=dict)
    data: dict[tuple[str, int], bytes] = field(default_factory=dict)
    guided: bool = False
    excused: bool = False

    def put(self, key: str, size: int) -> None:
        """A new version of `key`; one that is called like a shard is one."""
        bucket = self.engine.bucket
        version = bucket.versions.get(key, 0) + 1
        data = content(key, version, size)
        if key.startswith(SHARDS) and size > SHARD_HEAD:
            data = shard(size)[:SHARD_HEAD] + data[SHARD_HEAD:]
        bucket.put_bytes(key, data)
        self.data[key, version] = data
        self.changed(key, version)

    def changed(self, key: str, version: int | None) -> None:
        """`key` has another version now, or none."""
        self.past.setdefault(key, []).append((version, trio.current_time()))

    def current(self, key: str) -> int | None:
        """The version there is now."""
        return self.past[key][-1][0] if key in self.past else None

    def believable(self, key: str, asked_s: float) -> set[int | None]:
        """Versions a name may lead to that was asked for then: what was current since a TTL."""
        past = [(None, float("-inf")), *self.past.get(key, [])]
        result = {past[-1][0]}
        for (version, _), (_, until) in itertools.pairwise(past):
            if until >= asked_s - TTL_S:
                result.add(version)
        return result

    def handle(self, number: int) -> Handle | None:
        """One of the open ones."""
        return self.handles[number % len(self.handles)] if self.handles else None


@asynccontextmanager
async def open_world(
    slots: int = 24, capacity: int = 6, guided: bool = False
) -> AsyncIterator[World]:
    """Everything there is, on the virtual clock."""
    async with (
        open_engine(slots, capacity, deadline_s=DEADLINE_S, guided=guided) as engine,
        trio.open_nursery() as pages,
    ):
        config = TreeConfig(ttl_s=TTL_S, negative_ttl_s=TTL_S)
        names = Names(engine)
        tree = Tree(names, "", config, engine.counters, trio.current_time)
        world = World(engine, tree, Kernel(engine, pages), names, guided=guided)
        engine.find_inode = lambda file: tree.find(file.meta.id)
        engine.on_changed = lambda file: tree.mark_stale(file.meta.id)
        world.kernel.attach()
        world.hints = HintEngine(
            tree, "", engine.hinted, engine.fetcher, engine.arena, trio.CapacityLimiter(4),
            Pins(engine.arena.budget), Groups(),
        )  # fmt: skip
        world.peers = [SimulatedPeer(world.hints, world.inodes.__getitem__) for _ in range(PEERS)]
        yield world
        pages.cancel_scope.cancel()


async def play(history: list[Action], mutate: Mutate = lambda world: None) -> None:
    """Play a history; AssertionError where the thing and the model part."""
    async with open_world() as world:
        mutate(world)
        for action in history:
            await act(world, action)
        await settle(world)


async def act(world: World, action: Action) -> None:
    """Do one thing, and look at what comes of it."""
    bucket = world.engine.bucket
    match action:
        case Put(key, size):
            world.put(key, size)
        case Delete(key):
            if bucket.objects.pop(key, None) is not None:
                world.changed(key, None)
        case Open(key):
            await open_file(world, key)
        case List():
            await list_all(world)
        case Close(number):
            handle = world.handle(number)
            if handle is not None and not handle.reading:
                close(world, handle)
        case Read(reads, cached):
            async with trio.open_nursery() as nursery:
                for number, offset, size in reads:
                    handle = world.handle(number)
                    if handle is not None:
                        nursery.start_soon(read, world, handle, offset, size, cached)
        case Fail(times):
            bucket.faults.extend([StoreUnavailable("simulated")] * times)
        case Lose():
            world.engine.workers.lose_next += 1
        case Stall(delays):
            world.engine.workers.delays.extend(delays)
        case Sleep(seconds):
            await trio.sleep(seconds)
        case Evict(arena, pages):
            _evict(world, arena, pages)
        case _:
            await _act_of_peer(world, action)


async def _act_of_peer(world: World, action: Action) -> None:
    assert isinstance(action, Hint | Wait | Take | Leave)
    peer = world.peers[action.peer % len(world.peers)]
    if isinstance(action, Wait):
        handle = world.handle(action.block)
        if handle is not None:
            blocks = handle.size // BLOCK + 1
            await peer.wait(action.mode, handle.inode, action.block % blocks)
        return
    async with peer.busy:
        match action:
            case Hint(_, number, mode, first, stop, append):
                handle = world.handle(number)
                if handle is not None:
                    step = handle.size / EIGHTHS
                    start, end = int(first * step), int(max(first, stop) * step)
                    await peer.hint(mode, handle.inode, start, end, append)
            case Take(_, back):
                peer.take()
                peer.give_back(back)
            case Leave():
                peer.leave()


def _look_at(world: World, entry: Entry, asked_s: float, stale: set[tuple[str, int]]) -> int:
    """The version a name leads to, which must be one to be believed."""
    assert entry.meta is not None
    key, version = entry.key, int(entry.meta.id.etag[1:])
    assert version in world.believable(key, asked_s), f"{key} leads to version {version}"
    assert (key, version) not in stale, f"{key} leads to version {version}, seen to be stale"
    return version


async def open_file(world: World, key: str) -> Handle | None:
    """Look a name up and open it; None if it is absent, or just now stale."""
    asked_s, stale = trio.current_time(), set(world.stale)
    try:
        entry = await world.tree.lookup(ROOT_INODE, key.encode())
    except ObjectNotFound:
        assert None in world.believable(key, asked_s), f"{key} exists, and was not found"
        return None
    except StoreUnavailable:
        assert world.excused, f"{key}: the store is fine, and the name was not found"
        return None
    version = _look_at(world, entry, asked_s, stale)
    assert entry.meta is not None
    world.tree.remember(entry)
    world.inodes[entry.inode] = world.data[key, version]
    if entry.stale:
        world.tree.forget(entry.inode, 1)
        return None
    world.tree.acquire(entry.inode)
    file = world.engine.files.opened(entry.meta)
    file.inode = entry.inode
    if not file.inspected and not world.guided:
        file.inspected, file.data_start = True, 16
    handle = Handle(file, entry.inode, version, entry.meta.size)
    world.handles.append(handle)
    return handle


async def list_all(world: World) -> None:
    """List the directory: every name must be one to be believed, and so must every absence."""
    asked_s, stale = trio.current_time(), set(world.stale)
    try:
        shown = {entry.key: entry for entry in await world.tree.listing(ROOT_INODE)}
    except StoreUnavailable:
        assert world.excused, "the store is fine, and there was no listing"
        return
    for entry in shown.values():
        _look_at(world, entry, asked_s, stale)
    for key in world.past:
        assert key in shown or None in world.believable(key, asked_s), f"{key} is not listed"


def close(world: World, handle: Handle) -> None:
    """Close a handle; the kernel forgets the inode as well."""
    world.handles.remove(handle)
    world.engine.close(handle.file)
    world.tree.release(handle.inode)
    world.tree.forget(handle.inode, 1)
    if world.tree.find(handle.file.meta.id) is None:
        world.kernel.forget(handle.inode)


async def read(world: World, handle: Handle, offset: int, size: int, cached: bool = False) -> None:
    """One read: the pinned version's bytes, or ESTALE if another one is current."""
    key = handle.file.meta.id.key
    want = world.data[key, handle.version][offset : offset + size]
    handle.reading += 1
    try:
        if cached:
            got = await world.kernel.read(handle.file, handle.inode, offset, size)
        else:
            got = await world.engine.read(handle.file, offset, size)
    except ObjectChanged:
        now = world.current(key)
        assert now != handle.version, f"{key}: version {now} is current, and was ESTALE"
        world.tree.mark_stale(handle.file.meta.id)
        world.stale.add((key, handle.version))
        return
    except FusefsError as error:
        if world.excused and isinstance(error, (StoreUnavailable, CorruptData)):
            return
        raise AssertionError(f"{key} [{offset}, +{size}): {type(error).__name__}") from error
    finally:
        handle.reading -= 1
    assert got == want, f"{key}@{handle.version} [{offset}, +{size}): other bytes"


def _evict(world: World, arena: bool, pages: bool) -> None:
    if pages:
        world.kernel.drop()
    if arena:
        now, slots = trio.current_time(), world.engine.slots
        for block in slots._owners:
            if block is not None and block.rank(now) is not Rank.PINNED:
                slots._evict(block)


async def settle(world: World) -> None:
    """Once everything is closed and time has passed, no gauge is left standing."""
    for peer in world.peers:
        peer.leave()
    for handle in tuple(world.handles):
        close(world, handle)
    await trio.sleep(SETTLED_S)
    engine, hints = world.engine, world.hints
    assert hints is not None
    gauges = engine.slots.statistics()
    assert gauges["fetching"] == 0
    assert engine.workers.busy == 0
    assert len(hints.pins) == len(hints.hinted) == len(hints.groups._groups) == 0
    assert hints.waits.borrowed_tokens == 0
    assert engine.pagecache.statistics()["pushing"] == 0
    assert not engine.fetcher._runs and not engine.fetcher._demand
    owners = [block for block in engine.slots._owners if block is not None]
    assert all(block.waiters == 0 and block.state is State.READY for block in owners)
    assert len({(id(b.file), b.index) for b in owners}) == len(owners)
    assert gauges["unread"] == sum(block.unread for block in owners)
    assert all(file.opens == 0 for file in engine.files._files.values())
    assert world.tree.statistics().entries_live == 1  # the root
