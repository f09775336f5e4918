"""From accesses and headers to wanted blocks: which file's plan is asked, and when.

Decides nothing about bytes of one file (that is `policy.plan`) and fetches nothing itself: it
answers the fetcher's question "what next?". Its one idea: what tells of the data (a shard's header,
the metadata of a GGUF file, an archive's directory) may be read without consequence; the first
touch of the data itself starts the whole file, and the shards after it follow.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import trio

from fusefs.engine.blocks import File, FileTable
from fusefs.engine.companions import Companions
from fusefs.engine.hinted import HintedPlans
from fusefs.errors import CorruptData, FusefsError, StoreTimeout, StoreUnavailable
from fusefs.objects import Extent, ObjectMeta
from fusefs.policy.companions import companions_of
from fusefs.policy.kinds import Kind
from fusefs.policy.plan import Priority

log = logging.getLogger("fusefs.prefetcher")

NEXT_SHARD_IDLE_S = 10.0
"""Shards nobody has opened yet are fetched only while the model is being read: a loader that
stopped (or wanted one shard only) costs no more than what was under way."""

NEXT_SHARD_CONSUMED_FRACTION = 4
"""The next shard follows once a quarter of this one was consumed, or a second one was opened: the
other shards of a model that is only being looked at stay where they are."""

_QUESTIONS_MAX = 1000
"""Headers and groups waiting to be looked at; past that the next access asks again."""

_ASKERS = 4
"""Questions under way at once: one shard of a store that hangs must not hold up the others."""

ASK_AGAIN_S = 1.0
"""Between two questions about one file: an index costs one small request."""

_ANSWER_DEADLINE_S = 60.0
"""A question that is not answered by then is asked again at the next access."""


class _About(Enum):
    """What is asked of the guide."""

    HEAD = "is the file what its name says, and where does its data begin"
    FOLLOWERS = "which shards come after it"
    COMPANIONS = "which files lie beside it"


class ShardGuide(Protocol):
    """Answers questions about files; may ask workers, raises FusefsError."""

    async def inspect(self, file: File) -> int:
        """Where the data of a file begins that is of the kind its name says; 0 if that is unknown.

        Raises CorruptData if it is of no such kind.
        """

    async def shards_after(self, file: File) -> Sequence[ObjectMeta]:
        """The shards a loader of this file will want next, in order; often empty."""

    def siblings(self, file: File) -> Sequence[ObjectMeta]:
        """The files of its directory, as far as they are known without asking the store."""


def _run_of(file: File, priority: Priority) -> tuple[File, int, int] | None:
    """What the file's plan wants next, unless it changed, or rests after a setback."""
    if file.changed is not None or not file.setback.may_try(trio.current_time()):
        return None
    run = file.plan.next_run(priority, file.has)
    if run is None:
        return None
    file.setback.tried(trio.current_time())
    return file, *run


@dataclass(slots=True)
class _Left:
    """What a shard that was closed while a model was being read leaves to do."""

    file: File
    closed_s: float
    passes: int
    followers: list[ObjectMeta]


class Prefetcher:
    """The plans of all open files.

    The mutable state of Prefetcher is the active files (most recently read last), the shards ahead
    of them, what the one closed last left to do, companions, the questions under way, and when to
    ask again what the store did not answer.
    INVARIANT: every file in `_ahead` counts as opened once more.
    """

    def __init__(
        self,
        files: FileTable,
        hinted: HintedPlans,
        head_bytes: int,
        companion_blocks: int,
        wake: Callable[[], None],
    ) -> None:
        self._files = files
        self._hinted = hinted
        self._head_bytes = head_bytes
        self._companion_blocks = companion_blocks
        self._wake = wake
        self._companions = Companions(files, self.closed)
        self._active: OrderedDict[int, File] = OrderedDict()
        self._ahead: list[File] = []
        self._followers: dict[int, list[ObjectMeta]] = {}
        self._unanswered: dict[int, float] = {}
        self._left: _Left | None = None
        self._accessed_s = 0.0
        send, receive = trio.open_memory_channel[tuple[File, _About]](_QUESTIONS_MAX)
        self._ask, self._questions = send, receive

    def accessed(
        self,
        file: File,
        extent: Extent,
        indices: range,
        taken: Callable[[int], bool] | None = None,
    ) -> None:
        """A READ came in, before it is answered. `taken` tells which blocks are at hand."""
        plan = file.plan
        taken = taken or file.has
        self._accessed_s = trio.current_time()
        if self._hinted.accessed(file, extent, indices):
            plan.glance(extent, taken)
            return
        if not file.started and plan.kind is not Kind.OPAQUE:
            if plan.kind is Kind.SHARD:
                leads_on = self._look_at_shard(file, extent, indices)
            else:
                leads_on = self._look_at_container(file, extent, indices)
            if not leads_on:
                plan.glance(extent, taken)
                return
        if self._companions.due(file):
            self._question(file, _About.COMPANIONS)
        passes = plan.passes
        plan.access(extent, taken)
        asks_again = self._unanswered.get(id(file), self._accessed_s) < self._accessed_s
        if file.started and (asks_again or plan.passes != passes):
            # The store did not say, or the shards after it are gone as well.
            self._unanswered.pop(id(file), None)
            self._question(file, _About.FOLLOWERS)
        self._activate(file)
        self._wake()

    def closed(self, file: File) -> None:
        """The file's last handle is gone: nothing of it is wanted any more but by hints."""
        if file.opens > file.hinted:
            return
        if file.started and self._is_being_read(file):
            # A loader that closes each shard before it opens the next one is still loading.
            followers = self._followers.get(id(file))
            self._left = _Left(file, trio.current_time(), file.plan.passes, followers or [])
        self._active.pop(id(file), None)
        self._followers.pop(id(file), None)
        self._unanswered.pop(id(file), None)
        file.started = False
        file.touched_block = None
        file.plan.stop()

    def next_run(self) -> tuple[File, int, int] | None:
        """The most urgent run to prefetch, by `Priority` and then by who was read last."""
        hinted = self._hinted.next_run(Priority.HINTED)
        return hinted or self._unasked_run() or self._hinted.next_run(Priority.WARM)

    def _unasked_run(self) -> tuple[File, int, int] | None:
        """What nobody asked for in words, but by reading."""
        for priority in (Priority.HEAD, Priority.STREAM, Priority.COMPANIONS, Priority.REST):
            if priority is Priority.COMPANIONS:
                companion = self._companions.next_run()
                if companion is not None:
                    return companion
                continue
            for file in reversed(self._active.values()):
                run = _run_of(file, priority)
                if run is not None:
                    return run
        return self._next_shard_run()

    async def run(self, guide: ShardGuide) -> None:
        """Look at headers and model groups as they are asked for, for ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(_ASKERS):
                nursery.start_soon(self._answer, guide, self._questions.clone())

    async def _answer(
        self, guide: ShardGuide, questions: trio.MemoryReceiveChannel[tuple[File, _About]]
    ) -> None:
        async for file, about in questions:
            try:
                with trio.move_on_after(_ANSWER_DEADLINE_S) as scope:
                    await self._ask_guide(file, about, guide)
                if scope.cancelled_caught:
                    raise StoreTimeout(f"no answer within {_ANSWER_DEADLINE_S:g} s")
            except FusefsError as error:
                log.info("no plan for %s: %s", file.meta.id.key, error)
                if about is _About.HEAD:
                    file.inspected = False
                elif isinstance(error, StoreUnavailable):
                    self._unanswered[id(file)] = trio.current_time() + ASK_AGAIN_S
            self._wake()

    async def _ask_guide(self, file: File, about: _About, guide: ShardGuide) -> None:
        if about is _About.HEAD:
            await self._inspect(file, guide)
        elif about is _About.COMPANIONS:
            metas = guide.siblings(file)
            sizes = self._files.block_size, self._companion_blocks
            self._companions.add(companions_of(file.meta.id.key, metas, *sizes))
        elif file.started:
            followers = list(await guide.shards_after(file))
            if file.started:
                self._followers[id(file)] = followers
            elif self._left is not None and self._left.file is file:
                self._left.followers = followers

    # -- heads, tails and data --------------------------------------------------------------------

    def _look_at_shard(self, file: File, extent: Extent, indices: range) -> bool:
        """Start the shard if its data is touched; whether the access leads to others."""
        self._ask_once(file)
        data = max(file.data_start or 0, self._head_bytes)
        if extent.start < data and file.meta.size > data:
            # A header of more than one window is read on, but not into the data.
            file.plan.edge = -(-data // file.plan.block_size)
            return extent.start >= self._head_bytes
        file.touched_block = indices.start
        if file.data_start is None:
            return False  # `_inspect` starts it
        self._start(file)
        return True

    def _look_at_container(self, file: File, extent: Extent, indices: range) -> bool:
        """Start an archive or a GGUF file if its data is touched, and it is one."""
        plan = file.plan
        if not plan.is_data(extent, self._head_bytes):
            if plan.kind is Kind.ARCHIVE and not file.inspected and extent.start < self._head_bytes:
                plan.want_tail()
            self._ask_once(file)
        elif file.data_start is not None:
            file.touched_block = indices.start
            self._start(file)
        elif file.inspected:
            file.touched_block = indices.start  # `_inspect` starts it
        return True

    def _ask_once(self, file: File) -> None:
        if not file.inspected:
            file.inspected = self._question(file, _About.HEAD)

    async def _inspect(self, file: File, guide: ShardGuide) -> None:
        try:
            file.data_start = await guide.inspect(file)
        except CorruptData as error:
            log.info("%s is planned like any other file: %s", file.meta.id.key, error)
            file.plan.become_opaque()
            return
        touched = file.touched_block
        if touched is None or file.started:
            return
        if touched * file.plan.block_size >= file.data_start:  # else it was still the header
            self._start(file)

    def _start(self, file: File) -> None:
        file.started = True
        file.plan.want_whole(file.touched_block or 0)
        self._activate(file)
        self._retire_ahead(file)
        self._question(file, _About.FOLLOWERS)

    def _activate(self, file: File) -> None:
        """The file is the one read last; its plan is asked from now on."""
        self._active[id(file)] = file
        self._active.move_to_end(id(file))

    def _question(self, file: File, about: _About) -> bool:
        """Ask the guide; False if too many questions are waiting."""
        try:
            self._ask.send_nowait((file, about))
        except trio.WouldBlock:
            log.info("too many files opened at once: %s is not planned yet", file.meta.id.key)
            return False
        return True

    # -- next shards ------------------------------------------------------------------------------

    def _next_shard_run(self) -> tuple[File, int, int] | None:
        if trio.current_time() - self._accessed_s > NEXT_SHARD_IDLE_S:
            return None
        while True:
            for file in self._ahead:
                run = _run_of(file, Priority.REST)
                if run is not None:
                    return run
            self._drop_spent()
            if any(file.setback.lasts for file in self._ahead) or not self._send_ahead():
                return None

    def _send_ahead(self) -> bool:
        """Start the next shard of a model that is being read; False if there is none."""
        for file in reversed(self._active.values()):
            followers = self._followers.get(id(file))
            if followers and self._is_being_read(file):
                self._send(followers.pop(0), file.plan.passes)
                return True
        left = self._left
        if left is None or trio.current_time() - left.closed_s > NEXT_SHARD_IDLE_S:
            self._left = None
        elif left.followers:
            self._send(left.followers.pop(0), left.passes)
            return True
        return False

    def _send(self, meta: ObjectMeta, passes: int) -> None:
        """Start this shard, unless somebody got there first.

        `passes` is how often the shard before it was begun again.
        """
        file = self._files.opened(meta)
        if file.plan.whole:
            self._files.closed(file)
            return
        if file.plan.passes < passes:
            file.plan.begin_pass(0)
            file.plan.passes = passes
        file.plan.want_whole(0)
        self._ahead.append(file)
        if file.plan.kind is Kind.SHARD:
            self._ask_once(file)

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
            self.closed(file)
