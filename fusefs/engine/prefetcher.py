"""From accesses and headers to wanted blocks: which file's plan is asked, and when.

Decides nothing about bytes of one file (that is `policy.plan`) and fetches nothing itself: it
answers the fetcher's question "what next?". Its one idea: a shard's header region may be read
without consequence; the first touch behind it starts the whole shard, and the shards after it
follow.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from fusefs.engine.blocks import File, FileTable
from fusefs.errors import FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.policy.plan import Priority

log = logging.getLogger("fusefs.prefetcher")

NEXT_SHARD_IDLE_S = 10.0
"""Shards nobody has opened yet are fetched only while the model is being read: a loader that
stopped (or wanted one shard only) costs no more than what was under way."""

NEXT_SHARD_CONSUMED_FRACTION = 4
"""The next shard follows once a quarter of this one was consumed, or a second one was opened: the
other shards of a model that is only being looked at stay where they are."""

_QUESTIONS_MAX = 1000
"""Headers and groups waiting to be looked at; past that a file is simply planned without."""


class ShardGuide(Protocol):
    """Answers questions about shards; may ask workers, raises FusefsError."""

    async def data_start(self, file: File) -> int:
        """Where a shard's tensor data begins. Raises CorruptData if it has no valid header."""

    async def shards_after(self, file: File) -> Sequence[ObjectMeta]:
        """The shards a loader of this file will want next, in order; often empty."""


class Prefetcher:
    """The plans of all open files.

    The mutable state of Prefetcher is the active files (most recently read last), the shards ahead
    of them, and the questions under way. INVARIANT: every file in `_ahead` counts as opened once
    more.
    """

    def __init__(self, files: FileTable, head_bytes: int, wake: Callable[[], None]) -> None:
        self._files = files
        self._head_bytes = head_bytes
        self._wake = wake
        self._active: OrderedDict[int, File] = OrderedDict()
        self._ahead: list[File] = []
        self._followers: dict[int, list[ObjectMeta]] = {}
        self._accessed_s = 0.0
        send, receive = trio.open_memory_channel[tuple[File, bool]](_QUESTIONS_MAX)
        self._ask, self._questions = send, receive

    def accessed(self, file: File, extent: Extent, indices: range) -> None:
        """A READ came in, before it is answered."""
        plan = file.plan
        self._accessed_s = trio.current_time()
        if plan.is_shard and not file.started and self._is_head(file, extent, indices):
            plan.glance(extent, file.has)
            return
        passes = plan.passes
        plan.access(extent, file.has)
        if plan.passes != passes and file.started:
            self._question(file, is_header=False)  # the shards after it are gone as well
        key = id(file)
        self._active[key] = file
        self._active.move_to_end(key)
        self._wake()

    def closed(self, file: File) -> None:
        """The file's last handle is gone: nothing of it is wanted any more."""
        if file.opens <= 0:
            self._active.pop(id(file), None)
            self._followers.pop(id(file), None)
            file.started = False
            file.touched_block = None
            file.plan.stop()

    def next_run(self) -> tuple[File, int, int] | None:
        """The most urgent run to prefetch: stream windows, then open files, then next shards."""
        for priority in (Priority.STREAM, Priority.REST):
            for file in reversed(self._active.values()):
                run = file.plan.next_run(priority, file.has)
                if run is not None and file.changed is None:
                    return file, *run
        return self._next_shard_run()

    async def run(self, guide: ShardGuide) -> None:
        """Look at headers and model groups as they are asked for, one at a time, for ever."""
        async for file, is_header in self._questions:
            try:
                if is_header:
                    await self._inspect(file, guide)
                elif file.started:
                    followers = list(await guide.shards_after(file))
                    if file.started:
                        self._followers[id(file)] = followers
            except FusefsError as error:
                log.info("no plan for %s: %s", file.meta.id.key, error)
            self._wake()

    # -- shards -----------------------------------------------------------------------------------

    def _is_head(self, file: File, extent: Extent, indices: range) -> bool:
        """Whether this access only says "somebody reads the header"; else starts the shard."""
        if not file.inspected:
            file.inspected = True
            self._question(file, is_header=True)
        data = max(file.data_start or 0, self._head_bytes)
        if extent.start < data and file.meta.size > data:
            return True
        file.touched_block = indices.start
        if file.data_start is None and file.plan.is_shard:
            return True  # `_inspect` starts it
        self._start_shard(file)
        return False

    async def _inspect(self, file: File, guide: ShardGuide) -> None:
        try:
            file.data_start = await guide.data_start(file)
        except FusefsError as error:
            log.info("%s is planned like any other file: %s", file.meta.id.key, error)
            file.plan.become_opaque()
            return
        if file.touched_block is not None:
            self._start_shard(file)

    def _start_shard(self, file: File) -> None:
        file.started = True
        file.plan.want_whole(file.touched_block or 0)
        self._active[id(file)] = file
        self._retire_ahead(file)
        self._question(file, is_header=False)

    def _question(self, file: File, is_header: bool) -> None:
        try:
            self._ask.send_nowait((file, is_header))
        except trio.WouldBlock:
            log.warning("too many files opened at once: %s is not planned", file.meta.id.key)

    def _next_shard_run(self) -> tuple[File, int, int] | None:
        if trio.current_time() - self._accessed_s > NEXT_SHARD_IDLE_S:
            return None
        while True:
            for file in self._ahead:
                run = file.plan.next_run(Priority.REST, file.has)
                if run is not None and file.changed is None:
                    return file, *run
            self._drop_spent()
            if not self._send_ahead():
                return None

    def _send_ahead(self) -> bool:
        """Start the next shard of a model that is being read; False if there is none."""
        for file in reversed(self._active.values()):
            followers = self._followers.get(id(file))
            if not followers or not self._is_being_read(file):
                continue
            following = self._files.opened(followers.pop(0))
            if following.plan.whole:  # somebody got there first
                self._files.closed(following)
            else:
                if following.plan.passes < file.plan.passes:
                    following.plan.begin_pass(0)
                    following.plan.passes = file.plan.passes
                following.plan.want_whole(0)
                self._ahead.append(following)
            return True
        return False

    def _is_being_read(self, file: File) -> bool:
        plan = file.plan
        return plan.consumed.progress * NEXT_SHARD_CONSUMED_FRACTION >= plan.blocks or (
            sum(other.started for other in self._active.values()) > 1
        )

    def _drop_spent(self) -> None:
        """Let go of shards sent ahead whose blocks were given up: nobody came for them."""
        for file in [file for file in self._ahead if file.plan.exhausted() and not file.blocks]:
            self._retire_ahead(file)

    def _retire_ahead(self, file: File) -> None:
        """The shard needs no keeping any more: its opens are its readers' alone."""
        if file in self._ahead:
            self._ahead.remove(file)
            self._files.closed(file)
