"""What workers found out about checksums, as the daemon sees it: counts, and pieces in doubt.

Most is checked by the workers before a block is ready (`fusefs.engine.verifier`). Here the sums of
blocks are put together where a store has one CRC for more than a range. The one idea: once a piece
is known to be wrong, though not which of its blocks, its file is *suspect*, and nobody gets more of
it until `fusefs.engine.audit` has found out.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import trio

from fusefs.engine.blocks import Block, File
from fusefs.engine.verifier import Part, Report
from fusefs.errors import ChecksumMismatch, FusefsError
from fusefs.objects import Extent
from fusefs.policy.crc import find_crc
from fusefs.policy.ledger import Ledger, Verdict
from fusefs.telemetry.counters import Counters

log = logging.getLogger("fusefs.checking")


@dataclass(slots=True, eq=False)
class Suspicion:
    """Pieces of one file whose blocks do not add up, with their CRCs.

    `earlier` are CRCs that parts had when they came before, with other bytes. `over` is set once
    the file may be read again, or is wrong.
    """

    pieces: dict[Extent, int] = field(default_factory=dict)
    earlier: list[tuple[Extent, int]] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)


class Checking:
    """Takes note of reports.

    The mutable state of Checking is the suspect files that nobody has looked into yet; that of
    files is in their ledgers and suspicions.
    """

    def __init__(self, block_size: int, counters: Counters) -> None:
        self._block_size = block_size
        self._counters = counters
        self._suspects: deque[tuple[File, Suspicion]] = deque()
        self._arrived = trio.Event()

    def landed(self, file: File, wire: dict[str, Any] | None, won: list[Block]) -> None:
        """A worker's report of bytes that landed; of them, `won` are what readers get.

        To be called before those blocks are READY.
        """
        if wire is None:
            return
        report = Report.from_wire(wire)
        self._counters.checksums_verified_bytes += report.verified
        self._counters.checksums_missing_bytes += report.missing
        if not report.parts:
            return
        if file.ledger is None:
            file.ledger = Ledger(find_crc(report.crc), self._block_size)
        indices = {block.index for block in won}
        for part in report.parts:
            # The same block by a slower request is in nobody's way, and may differ.
            if part.extent.start // self._block_size in indices:
                self._note(file, file.ledger, part)

    def failed(self, error: FusefsError) -> None:
        """A request failed."""
        if isinstance(error, ChecksumMismatch):
            self._counters.checksum_mismatches += 1
            log.warning("%s", error)

    def verified(self, size: int) -> None:
        """So many bytes turned out to be right after all."""
        self._counters.checksums_verified_bytes += size

    async def next_suspect(self) -> tuple[File, Suspicion]:
        """Wait for a file to look into."""
        while not self._suspects:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._suspects.popleft()

    def _note(self, file: File, ledger: Ledger, part: Part) -> None:
        before = ledger.known(part.piece, part.extent)
        verdict, size = ledger.note(part.piece, part.expected, part.extent, part.crc)
        if verdict is Verdict.RIGHT:
            self._counters.checksums_verified_bytes += size
        if verdict is not Verdict.WRONG or file.changed is not None:
            return
        if file.suspicion is None:
            file.suspicion = Suspicion()
            self._suspects.append((file, file.suspicion))
            self._arrived.set()
        if part.piece not in file.suspicion.pieces:
            self._counters.checksum_mismatches += 1
            log.warning(
                "%r came with wrong bytes between %d and %d: looking for them",
                file.meta.id.key,
                part.piece.start,
                part.piece.stop,
            )
        file.suspicion.pieces[part.piece] = part.expected
        if before is not None and before != part.crc:
            file.suspicion.earlier.append((part.extent, before))
