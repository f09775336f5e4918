"""A bucket in memory that answers as slowly as told, counts questions, and fails on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from fusefs.config import TreeConfig
from fusefs.errors import FusefsError, ObjectNotFound
from fusefs.objects import ListPage, ObjectId, ObjectMeta
from fusefs.telemetry.counters import Counters
from fusefs.tree.inodes import ROOT_INODE, Entry
from fusefs.tree.tree import Tree


class SimulatedBucket:
    """A `Lister` over a dictionary, paging as S3 does: objects and prefixes together, by key."""

    def __init__(
        self, keys: Iterable[str] = (), page_keys: int = 1000, latency_s: float = 0.05
    ) -> None:
        self.objects: dict[str, ObjectMeta] = {}
        self.page_keys = page_keys
        self.latency_s = latency_s
        self.failure: FusefsError | None = None
        self.lists: list[str] = []
        """The prefixes of all listing requests, one for each page."""
        self.heads: list[str] = []
        for key in keys:
            self.put(key)

    def put(self, key: str, etag: str = "v1", size: int = 10, mtime_ns: int = 0) -> None:
        self.objects[key] = ObjectMeta(ObjectId(key, etag), size, mtime_ns)

    def requests(self) -> int:
        return len(self.lists) + len(self.heads)

    def page(self, prefix: str, token: str | None) -> ListPage:
        below: dict[str, ObjectMeta | None] = {}
        for key, meta in self.objects.items():
            if key.startswith(prefix):
                segment, slash, _ = key[len(prefix) :].partition("/")
                below[prefix + segment + slash] = None if slash else meta
        names = sorted(name for name in below if token is None or name > token)
        shown = {name: below[name] for name in names[: self.page_keys]}
        return ListPage(
            objects=tuple(meta for meta in shown.values() if meta is not None),
            prefixes=tuple(name for name, meta in shown.items() if meta is None),
            next_token=max(shown) if len(names) > self.page_keys else None,
        )

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        self.lists.append(prefix)
        page = self.page(
            prefix, token
        )  # as of when it was asked: the answer may arrive out of date
        await self._answer()
        return page

    async def head(self, key: str) -> ObjectMeta:
        self.heads.append(key)
        meta = self.objects.get(key)
        await self._answer()
        if meta is None:
            raise ObjectNotFound(f"no {key!r}")
        return meta

    async def _answer(self) -> None:
        failure = self.failure
        await trio.sleep(self.latency_s)
        if failure is not None:
            raise failure


def make_tree(
    bucket: SimulatedBucket,
    prefix: str = "",
    ttl_s: float = 60.0,
    counters: Counters | None = None,
) -> Tree:
    """A tree over `bucket` that believes absence for 10 s, and whose clock is trio's."""
    config = TreeConfig(ttl_s=ttl_s, negative_ttl_s=10.0)
    return Tree(bucket, prefix, config, counters or Counters(), trio.current_time)


async def walk(tree: Tree, path: str) -> Entry:
    """Look up a path as the kernel does: name by name, remembering each."""
    entry = tree.get(ROOT_INODE)
    for name in path.split("/"):
        entry = await tree.lookup(entry.inode, name.encode())
        tree.remember(entry)
    return entry


async def all_at_once(*asks: Callable[[], Awaitable[object]]) -> list[object]:
    """Run all of them concurrently: their results or `FusefsError`s, in order."""
    results: list[object] = [None] * len(asks)

    async def run(index: int, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            results[index] = await ask()
        except FusefsError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index, ask in enumerate(asks):
            nursery.start_soon(run, index, ask)
    return results
