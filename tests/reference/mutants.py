"""The classic mistakes, planted: each is one that somebody has made in a system like this.

A mutant is planted into a world, by pytest's monkeypatch, and the model has to object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusefs.engine.blocks import Block, File, FileTable, State
from fusefs.engine.fetcher import Fetcher
from fusefs.engine.handed import Pins
from fusefs.engine.slots import Slots
from fusefs.objects import ObjectId
from fusefs.policy.slots import Rank
from fusefs.tree.inodes import Entry, Inodes
from fusefs.tree.listings import Listings
from fusefs.tree.tree import Tree
from tests.reference.model import World

Mutant = Callable[[World, pytest.MonkeyPatch], None]


def ready_too_early(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks count as landed when their request starts."""
    original = Fetcher._start

    def start(self: Fetcher, blocks: list[Block], *rest: Any) -> bool:
        started = original(self, blocks, *rest)
        for block in blocks:
            if block.state is State.FETCHING:
                block.settle(State.READY)
        return started

    monkeypatch.setattr(Fetcher, "_start", start)


def no_version_in_the_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of an object share one file."""
    original = FileTable.get

    def get(self: FileTable, meta: Any) -> File:
        for (key, _), file in self._files.items():
            if key == meta.id.key:
                return file
        return original(self, meta)

    monkeypatch.setattr(FileTable, "get", get)


def waiters_do_not_pin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of blocks that somebody waits for, or that are in flight, may be taken."""
    monkeypatch.setattr(Block, "rank", lambda self, now: Rank.FREE)


def a_loser_gives_up_its_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a hedge has won a block, the slot that the late run still writes to is free."""
    original = Slots.exchange

    def exchange(self: Slots, one: Block, other: Block) -> None:
        original(self, one, other)
        for block in (one, other):
            if block.spare:
                self.vacate(block)

    monkeypatch.setattr(Slots, "exchange", exchange)


def requests_without_a_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked for whatever is current: no If-Match."""
    bucket = world.engine.bucket
    original = type(bucket).read

    def read(self: Any, id: ObjectId, extent: Any) -> bytes:
        if id.key in bucket.objects:
            id = ObjectId(id.key, bucket.meta(id.key).id.etag)
        return original(bucket, id, extent)

    monkeypatch.setattr(type(bucket), "read", read)


def held_slots_are_not_pinned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that a peer still reads is taken for another block."""

    def pin(self: Pins, block: Block) -> bool:
        self._held[block] = self._held.get(block, 0) + 1
        return True

    def unpin(self: Pins, block: Block) -> None:
        self._held[block] -= 1
        if not self._held[block]:
            del self._held[block]

    monkeypatch.setattr(Pins, "pin", pin)
    monkeypatch.setattr(Pins, "unpin", unpin)


def listings_never_grow_old(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was listed once is believed for ever."""
    original = Listings._keep

    def keep(self: Listings, prefix: str, listing: Any) -> None:
        original(self, prefix, type(listing)(listing.entries, listing.complete, float("inf")))

    monkeypatch.setattr(Listings, "_keep", keep)


def listings_outlive_an_estale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a version is gone is not told to the tree, which leads to it again."""
    monkeypatch.setattr(Tree, "mark_stale", lambda self, id: None)


def pages_of_another_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are pushed to the inode that the kernel got first for this key."""
    first: dict[str, int] = {}
    original = Tree.remember

    def remember(self: Tree, entry: Any, n: int = 1) -> None:
        original(self, entry, n)
        first.setdefault(entry.key, entry.inode)

    monkeypatch.setattr(Tree, "remember", remember)
    world.engine.find_inode = lambda file: first.get(file.meta.id.key)


def one_inode_for_all_versions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version gets the inode, and so the pages, of the one before."""
    original = Inodes.file

    def file(self: Inodes, parent: int, name: bytes, meta: Any) -> Entry:
        for entry in self._live.values():
            if entry.key == meta.id.key:
                entry.meta, entry.stale = meta, False
                return entry
        return original(self, parent, name, meta)

    monkeypatch.setattr(Inodes, "file", file)


def pushed_slots_are_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's slot may be taken while the pusher still copies from it."""
    original = Block.rank

    def rank(self: Block, now_s: float) -> Rank:
        pushing, self.pushing = self.pushing, False
        try:
            return original(self, now_s)
        finally:
            self.pushing = pushing

    monkeypatch.setattr(Block, "rank", rank)


def a_lost_wakeup(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who joins a fetch that is under way is not woken when it lands."""
    original = Block.settle

    def settle(self: Block, state: State, error: Any = None) -> None:
        if self.waiters > 1:
            self._arrived = None
        original(self, state, error)

    monkeypatch.setattr(Block, "settle", settle)


MUTANTS: tuple[Mutant, ...] = (
    ready_too_early,
    no_version_in_the_table,
    waiters_do_not_pin,
    a_loser_gives_up_its_slot,
    requests_without_a_version,
    held_slots_are_not_pinned,
    listings_never_grow_old,
    listings_outlive_an_estale,
    pages_of_another_version,
    one_inode_for_all_versions,
    pushed_slots_are_not_kept,
    a_lost_wakeup,
)
