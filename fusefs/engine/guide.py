"""What the daemon asks workers besides bytes: names, headers, model groups; with retries.

Blocking work (XML, JSON, parsing) happens in the workers; the daemon's thread only awaits.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import cachetools
import trio

from fusefs.engine import jobs
from fusefs.engine.arena import Arena
from fusefs.engine.blocks import Block, File
from fusefs.engine.fetcher import Fetcher
from fusefs.errors import CorruptData, StoreThrottled, StoreTimeout, StoreUnavailable
from fusefs.objects import Extent, ListPage, ObjectMeta
from fusefs.policy.backoff import backoff_s
from fusefs.policy.extents import blocks_of
from fusefs.policy.kinds import MAGIC, Kind
from fusefs.policy.missed import Missed
from fusefs.policy.shards import INDEX_SUFFIX, shard_order, shards_after
from fusefs.telemetry.counters import Counters
from loaderhint.header import LENGTH_BYTES, HeaderError, read_length

CHECK_DEADLINE_S = 10.0
"""`fusefs mount` gives up on a store that does not answer after this time: a person is waiting."""

NAMES_DEADLINE_S = 60.0
"""A look-up is retried for so long: an error is what makes a loader give up."""

HEADER_PARSED_BYTES_MAX = 4 << 20
"""Larger headers (more than about 40,000 tensors) are trusted by their length: parsing one would
need its bytes in the arena all at once."""

INDEX_ATTEMPTS_MAX = 4
"""As often as a prefetch; afterwards the next read of the shard asks anew."""

_INDEXES_CACHED = 16


class Caller(Protocol):
    """What this module needs of the pool."""

    async def call(self, op: str, **arguments: Any) -> tuple[Any, list[Any]]:
        """Ask a worker: (result, parts)."""


class Names:
    """Listings and heads of the store; retried, counted. Obeys `fusefs.tree`'s Lister.

    A question about names raises `StoreTimeout` past `NAMES_DEADLINE_S`, or the deadline of reads
    if that is shorter: whoever wants errors soon wants all of them soon.

    The mutable state of Names is the questions that reached it a moment ago.
    """

    def __init__(
        self,
        caller: Caller,
        counters: Counters,
        on_throttled: Callable[[float | None], None],
        read_deadline_s: float,
    ) -> None:
        self._caller = caller
        self._counters = counters
        self._on_throttled = on_throttled
        self._deadline_s = min(NAMES_DEADLINE_S, read_deadline_s)
        self._missed = Missed()

    async def check(self, prefix: str) -> None:
        """Return if the source can be mounted; raises what `Store.check` raises."""
        self._counters.requests_list += 1
        await self._retried(CHECK_DEADLINE_S, jobs.CHECK, prefix=prefix)

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        """One page of the names below `prefix`."""
        self._counters.requests_list += 1
        next_token, parts = await self._retried(
            self._deadline_s, jobs.LIST, prefix=prefix, token=token
        )
        return jobs.page_from_parts(parts, next_token)

    async def head(self, key: str) -> ObjectMeta:
        """The current version of one key."""
        self._counters.requests_head += 1
        wire, _ = await self._retried(self._deadline_s, jobs.HEAD, key=key)
        return jobs.meta_from_wire(wire)

    async def _retried(self, deadline_s: float, op: str, **arguments: Any) -> tuple[Any, list[Any]]:
        attempt = 0
        last: StoreUnavailable | None = None
        question: list[Hashable] = [(op, *sorted(arguments.items()))]
        wait_s = self._missed.wait_s(question, deadline_s, trio.current_time())
        with trio.move_on_after(wait_s):
            while True:
                attempt += 1
                self._counters.requests += 1
                try:
                    return await self._caller.call(op, **arguments)
                except StoreUnavailable as error:
                    last = error
                    self._counters.retries += 1
                    after = None
                    if isinstance(error, StoreThrottled):
                        after = error.retry_after_s
                        self._on_throttled(after)
                    chance = random.random()  # noqa: S311 - jitter, no secret
                    await trio.sleep(backoff_s(attempt, chance, after))
        self._missed.missed(question, trio.current_time())
        why = f": {last}" if last else ""
        raise StoreTimeout(f"no answer from the store within {deadline_s:g} s{why}")


class Guide:
    """Headers and model groups, for the prefetcher.

    The mutable state of Guide is a small cache of parsed indexes, by etag.
    """

    def __init__(
        self,
        caller: Caller,
        fetcher: Fetcher,
        arena: Arena,
        siblings: Callable[[File], Sequence[ObjectMeta]],
        counters: Counters,
    ) -> None:
        self._caller = caller
        self._fetcher = fetcher
        self._arena = arena
        self._siblings = siblings
        self._counters = counters
        self._indexes: cachetools.LRUCache[ObjectMeta, list[str]] = cachetools.LRUCache(
            _INDEXES_CACHED
        )

    async def inspect(self, file: File) -> int:
        """Where the data of a file begins that is of the kind its name says; 0 if that is unknown.

        Raises CorruptData if it is of no such kind.
        """
        if file.plan.kind is Kind.SHARD:
            return await self._data_start(file)
        magic = MAGIC[file.plan.kind]
        if file.meta.size < len(magic):
            raise CorruptData(f"too short for {file.plan.kind.value}")
        async with self._pinned(file, Extent(0, len(magic))) as blocks:
            if self._arena.view(blocks[0].slot, 0, len(magic)) != magic:
                raise CorruptData(f"no {file.plan.kind.value}, by its first bytes")
        return 0

    async def _data_start(self, file: File) -> int:
        size = file.meta.size
        if size < LENGTH_BYTES + 2:
            raise CorruptData("shorter than a safetensors header")
        async with self._pinned(file, Extent(0, LENGTH_BYTES + 1)) as blocks:
            head = bytes(self._arena.view(blocks[0].slot, 0, LENGTH_BYTES + 1))
        length = _header_length(head, size)
        if length > min(HEADER_PARSED_BYTES_MAX, self._arena.budget.size_bytes // 8):
            return LENGTH_BYTES + length
        extent = Extent(0, LENGTH_BYTES + length)
        async with self._pinned(file, extent) as blocks:
            pieces = [
                [
                    block.slot * self._arena.block_size,
                    min(block.extent.stop, extent.stop) - block.extent.start,
                ]
                for block in blocks
            ]
            start, _ = await self._caller.call(jobs.HEADER, pieces=pieces, size=size)
        return int(start)

    async def shards_after(self, file: File) -> Sequence[ObjectMeta]:
        """The shards a loader of this file will want next, in order; often empty."""
        _, _, name = file.meta.id.key.rpartition("/")
        metas = {meta.id.key.rpartition("/")[2]: meta for meta in self._siblings(file)}
        indexed = None
        for sibling, meta in metas.items():
            if sibling.endswith(INDEX_SUFFIX):
                names = await self._index(meta)
                indexed = names if name in names else indexed
        return [metas[n] for n in shards_after(name, shard_order(name, metas, indexed))]

    def siblings(self, file: File) -> Sequence[ObjectMeta]:
        """The files of its directory, as far as they are known without asking the store."""
        return self._siblings(file)

    async def _index(self, meta: ObjectMeta) -> list[str]:
        if meta not in self._indexes:
            self._counters.requests += 1
            self._counters.requests_read += 1
            self._counters.bytes_fetched += meta.size
            _, parts = await self._read_index(meta)
            self._indexes[meta] = [name for part in parts for name in part]
        return self._indexes[meta]

    async def _read_index(self, meta: ObjectMeta) -> tuple[Any, list[Any]]:
        """Tried a few times: without its answer no shard is fetched before it is opened."""
        for attempt in range(1, INDEX_ATTEMPTS_MAX):
            try:
                return await self._ask_index(meta)
            except StoreUnavailable:
                self._counters.retries += 1
                chance = random.random()  # noqa: S311 - jitter, no secret
                await trio.sleep(backoff_s(attempt, chance))
        return await self._ask_index(meta)

    async def _ask_index(self, meta: ObjectMeta) -> tuple[Any, list[Any]]:
        arguments = {"key": meta.id.key, "etag": meta.id.etag, "size": meta.size}
        return await self._caller.call(jobs.INDEX, **arguments)

    @asynccontextmanager
    async def _pinned(self, file: File, extent: Extent) -> AsyncIterator[list[Block]]:
        """The READY blocks of `extent`, which keep their slots inside the block."""
        blocks, _ = self._fetcher.demand(file, blocks_of(extent, self._arena.block_size))
        try:
            for block in blocks:
                await block.wait_settled()
                if block.error is not None:
                    raise block.error
            yield blocks
        finally:
            self._fetcher.release(blocks)


def _header_length(head: bytes, file_size: int) -> int:
    """The length of the JSON that a file beginning with `head` claims to have; CorruptData if none.

    Looked at before the header's bytes are fetched: a lie must not cost a download.
    """
    try:
        length = read_length(head[:LENGTH_BYTES])
    except HeaderError as error:
        raise CorruptData(f"not a safetensors header: {error}") from error
    if length > file_size - LENGTH_BYTES:
        raise CorruptData("the header's length is not inside the file")
    if head[LENGTH_BYTES:] != b"{":
        raise CorruptData("a header begins with '{'")
    return length
