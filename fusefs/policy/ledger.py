"""The CRCs of a file's blocks, until those of a whole piece are known and can be compared.

Pure. Blocks come in any order, some more than once; what is compared is the piece (mostly: the
object) that the store has one CRC of. The one idea: what a block has in common with a piece is one
part, so a CRC and a mark for each block of a piece are all there is to remember: 9 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fusefs.objects import Extent
from fusefs.policy.crc import Crc


class Verdict(Enum):
    """What a part's CRC, together with those before it, says."""

    OPEN = "not all parts of the piece are known"
    RIGHT = "the piece is what its CRC is of"
    WRONG = "the piece is not, or the same part came with other bytes before"


@dataclass(slots=True)
class _Piece:
    """INVARIANT: `crcs[i]` is that of block `first + i`'s part of the piece, if `known[i]`."""

    extent: Extent
    expected: int
    first: int
    crcs: array[int]
    known: bytearray
    missing: int


class Ledger:
    """What is known of one file version.

    The mutable state of Ledger is its pieces, by where they begin.
    """

    def __init__(self, kind: Crc, block_size: int) -> None:
        self.kind = kind
        self._block_size = block_size
        self._pieces: dict[int, _Piece] = {}

    def note(self, piece: Extent, expected: int, part: Extent, crc: int) -> tuple[Verdict, int]:
        """A part has this CRC: the verdict, and how many bytes it is about that were not known.

        A part that comes again is compared with what it was before; the last CRC is remembered.
        """
        record = self._pieces.get(piece.start)
        if record is None or (record.extent, record.expected) != (piece, expected):
            record = self._pieces[piece.start] = self._new(piece, expected)
        index = part.start // self._block_size - record.first
        if record.known[index]:
            if record.crcs[index] != crc:
                record.crcs[index] = crc
                return Verdict.WRONG, part.size
            return (Verdict.OPEN, 0) if record.missing else (Verdict.RIGHT, part.size)
        record.crcs[index] = crc
        record.known[index] = 1
        record.missing -= 1
        if record.missing:
            return Verdict.OPEN, 0
        right = self._joined(record) == expected
        return (Verdict.RIGHT if right else Verdict.WRONG), piece.size

    def parts(self, piece: Extent) -> list[tuple[Extent, int | None]]:
        """The parts of a piece, in order, with the CRCs that are known."""
        record = self._pieces.get(piece.start)
        if record is None:
            return []
        return [
            (part, record.crcs[index] if record.known[index] else None)
            for index, part in enumerate(self._cut(record))
        ]

    def known(self, piece: Extent, part: Extent) -> int | None:
        """The CRC that this part had last."""
        record = self._pieces.get(piece.start)
        if record is None:
            return None
        index = part.start // self._block_size - record.first
        return record.crcs[index] if record.known[index] else None

    def believe(self, piece: Extent, crcs: Mapping[Extent, int]) -> None:
        """These are the CRCs of all parts of the piece."""
        record = self._pieces[piece.start]
        for index, part in enumerate(self._cut(record)):
            record.crcs[index] = crcs[part]
            record.known[index] = 1
        record.missing = 0

    def _new(self, piece: Extent, expected: int) -> _Piece:
        first = piece.start // self._block_size
        count = -(-piece.stop // self._block_size) - first
        zeros = bytes(8 * count)
        return _Piece(piece, expected, first, array("Q", zeros), bytearray(count), count)

    def _cut(self, record: _Piece) -> list[Extent]:
        piece, size = record.extent, self._block_size
        return [
            Extent(max(piece.start, block * size), min(piece.stop, (block + 1) * size))
            for block in range(record.first, record.first + len(record.known))
        ]

    def _joined(self, record: _Piece) -> int:
        sizes = (part.size for part in self._cut(record))
        return self.kind.join(zip(sizes, record.crcs, strict=True))
