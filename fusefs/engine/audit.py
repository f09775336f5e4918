"""Finding the block that is wrong in a piece whose blocks do not add up to its CRC.

The piece is fetched once more, into workers' own memory, for the CRCs of its blocks alone. If they
add up, whatever differs from them was wrong: a block that nobody has had yet is taken back, and
fetched again when it is wanted. The one idea: what was given out cannot be taken back; then, or if
the piece is wrong again, the version is condemned, and no handle of it gets another byte.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import trio

from fusefs.engine import jobs
from fusefs.engine.blocks import Block, File, State
from fusefs.engine.checking import Checking, Suspicion
from fusefs.engine.slots import Slots
from fusefs.errors import ChecksumMismatch, FusefsError
from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of, cut_extent

log = logging.getLogger("fusefs.audit")

ATTEMPTS_MAX = 3
"""As of ranges that are wrong by themselves: three in a row are the object's own trouble."""

_RANGE_BYTES = 8 << 20
"""One request, and one buffer in a worker."""

_AT_ONCE = 4
"""Requests of one audit: 32 MiB of workers' memory. Readers of the file wait, others do not."""


class Asking(Protocol):
    """What an audit needs of the pool."""

    async def call(self, op: str, **arguments: Any) -> tuple[Any, list[Any]]:
        """Ask a worker: (result, parts)."""


class Auditor:
    """Looks into suspect files, one after the other. Its state is the files'."""

    def __init__(
        self,
        checking: Checking,
        slots: Slots,
        workers: Asking,
        block_size: int,
        condemn: Callable[[File, FusefsError], None],
    ) -> None:
        self._checking = checking
        self._slots = slots
        self._workers = workers
        self._block_size = block_size
        self._condemn = condemn

    async def run(self) -> None:
        """For ever."""
        while True:
            file, suspicion = await self._checking.next_suspect()
            error = await self._examine(file, suspicion)
            # From here on no await: who was told to wait finds either all right, or an error.
            file.suspicion = None
            if error is not None:
                self._condemn(file, error)
            suspicion.over.set()

    async def _examine(self, file: File, suspicion: Suspicion) -> FusefsError | None:
        """Why the file is beyond help, or None: then all its blocks that are here are right."""
        while suspicion.pieces:
            piece, expected = next(iter(suspicion.pieces.items()))
            truth = await self._true_sums(file, piece, expected)
            if truth is None:
                return _stored_wrong(file, piece)
            del suspicion.pieces[piece]
            if not self._mend(file, suspicion, piece, truth):
                return _given_out(file, piece)
            self._checking.verified(piece.size)
        return None

    async def _true_sums(
        self, file: File, piece: Extent, expected: int
    ) -> dict[Extent, int] | None:
        """The CRCs of the piece's parts, fetched until they add up; None if they never do."""
        assert file.ledger is not None
        kind = file.ledger.kind
        for _ in range(ATTEMPTS_MAX):
            sums = await self._fetch_sums(file, piece, kind.name)
            if sums and kind.join((part.size, sums[part]) for part in sorted(sums)) == expected:
                return sums
        return None

    async def _fetch_sums(self, file: File, piece: Extent, kind: str) -> dict[Extent, int]:
        """The CRCs of its parts by another fetch; none if that failed."""
        sums: dict[Extent, int] = {}
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def fetch(extent: Extent) -> None:
            id = file.meta.id
            try:
                async with limit:
                    values, _ = await self._workers.call(
                        jobs.SUM,
                        key=id.key,
                        etag=id.etag,
                        start=extent.start,
                        stop=extent.stop,
                        block=self._block_size,
                        crc=kind,
                    )
            except FusefsError as error:
                log.info("fetching the sums of %r failed: %s", id.key, error)
                failed.append(error)
                return
            sums.update(zip(cut_extent(extent, self._block_size), values, strict=True))

        failed: list[FusefsError] = []
        async with trio.open_nursery() as nursery:
            for extent in cut_extent(piece, max(_RANGE_BYTES, self._block_size)):
                nursery.start_soon(fetch, extent)
        return {} if failed else sums

    def _mend(
        self, file: File, suspicion: Suspicion, piece: Extent, truth: dict[Extent, int]
    ) -> bool:
        """Take back the blocks that are wrong; False if somebody has had one of them."""
        assert file.ledger is not None
        if any(part in truth and truth[part] != crc for part, crc in suspicion.earlier):
            return False
        noted = file.ledger.parts(piece)
        wrong = [part for part, crc in noted if crc is not None and truth[part] != crc]
        blocks = [file.blocks.get(blocks_of(part, self._block_size)[0]) for part in wrong]
        if not all(_is_untouched(block) for block in blocks):
            return False
        for block in filter(None, blocks):
            self._slots.forget(block)
        file.ledger.believe(piece, truth)
        log.warning(
            "%r: %d of its blocks had wrong bytes that nobody had read; they are fetched again",
            file.meta.id.key,
            len(blocks),
        )
        return True


def _is_untouched(block: Block | None) -> bool:
    """Whether no byte of the block can have reached anybody."""
    return (
        block is not None
        and block.state is State.READY
        and not block.served
        and not block.pushing
        and block.file.watcher is None  # which takes blocks as they land
    )


def _stored_wrong(file: File, piece: Extent) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{file.meta.id.key!r} came with wrong bytes between {piece.start} and {piece.stop} each of"
        f" {ATTEMPTS_MAX + 1} times: it is stored wrong, most likely, and has to be uploaded again"
    )


def _given_out(file: File, piece: Extent) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{file.meta.id.key!r} came with wrong bytes between {piece.start} and {piece.stop}, and"
        " some of them were read before that was known: load it again"
    )
