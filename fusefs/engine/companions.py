"""Small files on their way because one beside them was read.

Says which of them to fetch next; which ones there are is `policy.companions`' decision, and when
their turn comes is the prefetcher's. A companion is kept open until all of it was asked for; from
then on its blocks are like any that were prefetched.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import trio

from fusefs.engine.blocks import File, FileTable
from fusefs.objects import ObjectMeta
from fusefs.policy.companions import is_companion
from fusefs.policy.plan import Priority

AGAIN_AFTER_S = 60.0
"""A directory's small files come along once in this time: as long as its listing is believed."""

DIRECTORIES_MAX = 1024
"""Directories remembered as done; an older one may be done again."""


class Companions:
    """The small files to fetch.

    The mutable state of Companions is the queue, and when each directory had its turn.
    INVARIANT: every file in the queue counts as opened once more.
    """

    def __init__(self, files: FileTable, closed: Callable[[File], None]) -> None:
        self._files = files
        self._closed = closed
        self._queue: deque[File] = deque()
        self._done: OrderedDict[str, float] = OrderedDict()

    def due(self, file: File) -> bool:
        """Whether this read is the first one of a small file in its directory for a while.

        True is said once: whoever hears it sees to the rest.
        """
        if not is_companion(file.meta):
            return False
        directory = file.meta.id.key.rpartition("/")[0]
        now = trio.current_time()
        if now - self._done.get(directory, float("-inf")) < AGAIN_AFTER_S:
            return False
        self._done[directory] = now
        self._done.move_to_end(directory)
        if len(self._done) > DIRECTORIES_MAX:
            self._done.popitem(last=False)
        return True

    def add(self, metas: Iterable[ObjectMeta]) -> None:
        """Fetch these, in this order, but for those that are being read or were."""
        for meta in metas:
            file = self._files.opened(meta)
            if file.opens > 1 or file.blocks or file.plan.consumed.known():
                self._files.closed(file)
                continue
            file.plan.want_whole(0)
            self._queue.append(file)

    def next_run(self) -> tuple[File, int, int] | None:
        """What to fetch next: (file, first block, count)."""
        while self._queue:
            file = self._queue[0]
            run = file.plan.next_run(Priority.REST, file.has)
            if run is not None and file.changed is None:
                return file, *run
            self._queue.popleft()
            self._files.closed(file)
            self._closed(file)
        return None
