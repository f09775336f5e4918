"""What workers found out about checksums, as the daemon sees it: counts, and verdicts on pieces.

Most is checked by the workers before a block is ready (`fusefs.engine.verifier`). Here the sums of
blocks are put together where a store has one CRC for more than a range. The one idea: a piece that
is wrong condemns its version. Which block it was is not known, and bytes may have been handed out,
so from then on no handle of it gets any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fusefs.engine.blocks import Block, File
from fusefs.engine.verifier import Part, Report
from fusefs.errors import ChecksumMismatch, FusefsError
from fusefs.policy.crc import find_crc
from fusefs.policy.ledger import Ledger, Verdict
from fusefs.telemetry.counters import Counters

log = logging.getLogger("fusefs.checking")


class Checking:
    """Takes note of reports. Its state is in the files' ledgers."""

    def __init__(
        self, block_size: int, counters: Counters, on_wrong: Callable[[File, FusefsError], None]
    ) -> None:
        self._block_size = block_size
        self._counters = counters
        self._on_wrong = on_wrong

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

    def _note(self, file: File, ledger: Ledger, part: Part) -> None:
        verdict, size = ledger.note(part.piece, part.expected, part.extent, part.crc)
        if verdict is Verdict.RIGHT:
            self._counters.checksums_verified_bytes += size
        elif verdict is Verdict.WRONG and file.changed is None:
            self._counters.checksum_mismatches += 1
            ledger.forget(part.piece)
            self._on_wrong(
                file,
                ChecksumMismatch(
                    f"{file.meta.id.key!r} came with wrong bytes between {part.piece.start} and"
                    f" {part.piece.stop}: load it again; if that does not help, it is stored wrong,"
                    " and has to be uploaded again"
                ),
            )
