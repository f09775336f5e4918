"""The ledger: CRCs of blocks in any order give the verdict that the whole bytes would give."""

from __future__ import annotations

import zlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fusefs.objects import Checksums, Extent
from fusefs.policy.crc import CRC32, find_crc
from fusefs.policy.ledger import Ledger, Verdict

BLOCK = 16
KIND = find_crc(CRC32)


def parts_of(piece: Extent) -> list[Extent]:
    """What a piece has in common with each block."""
    cuts = [
        piece.start,
        *range(piece.start // BLOCK * BLOCK + BLOCK, piece.stop, BLOCK),
        piece.stop,
    ]
    return [Extent(a, b) for a, b in pairwise(cuts)]


@given(
    data=st.binary(min_size=1, max_size=300),
    cuts=st.sets(st.integers(1, 299), max_size=4),
    order=st.randoms(use_true_random=False),
    wrong=st.none() | st.integers(0, 299),
)
def test_the_verdict_is_that_of_the_bytes(
    data: bytes, cuts: set[int], order: object, wrong: int | None
) -> None:
    """Whatever the pieces and the order of blocks: right exactly if the bytes are, at the end."""
    stops = sorted({cut for cut in cuts if cut < len(data)} | {len(data)})
    starts = [0, *stops[:-1]]
    pieces = [Extent(a, b) for a, b in zip(starts, stops, strict=True)]
    came = bytearray(data)
    if wrong is not None and wrong < len(data):
        came[wrong] ^= 1
    noted = [(piece, part) for piece in pieces for part in parts_of(piece)]
    getattr(order, "shuffle")(noted)  # noqa: B009 - hypothesis has no type for it
    ledger = Ledger(KIND, BLOCK)
    verdicts: dict[Extent, Verdict] = {}
    verified = 0
    for piece, part in noted:
        expected = zlib.crc32(data[piece.start : piece.stop])
        crc = zlib.crc32(came[part.start : part.stop])
        verdict, size = ledger.note(piece, expected, part, crc)
        verdicts[piece] = verdict
        verified += size if verdict is Verdict.RIGHT else 0
        assert verdict is not Verdict.WRONG or wrong is not None
    for piece in pieces:
        hit = wrong is not None and piece.start <= wrong < piece.stop
        assert verdicts[piece] is (Verdict.WRONG if hit else Verdict.RIGHT)
    if wrong is None:
        assert verified == len(data)


def test_a_block_that_comes_again_is_compared_with_itself() -> None:
    """Evicted and fetched again, a block must have the CRC it had."""
    data = bytes(range(40))
    piece = Extent(0, 40)
    ledger = Ledger(KIND, BLOCK)
    whole = zlib.crc32(data)
    crcs = {part: zlib.crc32(data[part.start : part.stop]) for part in parts_of(piece)}
    first, second, third = crcs
    assert ledger.note(piece, whole, first, crcs[first]) == (Verdict.OPEN, 0)
    assert ledger.note(piece, whole, first, crcs[first]) == (Verdict.OPEN, 0)
    assert ledger.note(piece, whole, first, 7) == (Verdict.WRONG, 16)
    assert ledger.known(piece, first) == 7
    assert ledger.note(piece, whole, first, crcs[first]) == (Verdict.WRONG, 16)
    ledger.note(piece, whole, third, crcs[third])
    assert ledger.note(piece, whole, second, crcs[second]) == (Verdict.RIGHT, 40)
    assert ledger.note(piece, whole, third, crcs[third]) == (Verdict.RIGHT, 8)
    assert ledger.note(piece, whole, third, 7) == (Verdict.WRONG, 8)
    assert ledger.parts(piece) == [(first, crcs[first]), (second, crcs[second]), (third, 7)]


def test_what_is_believed_is_what_blocks_are_compared_with() -> None:
    """Once a piece's CRCs are known from elsewhere, each block is judged by its own."""
    data = bytes(range(40))
    piece = Extent(0, 40)
    whole = zlib.crc32(data)
    crcs = {part: zlib.crc32(data[part.start : part.stop]) for part in parts_of(piece)}
    first, second, third = crcs
    ledger = Ledger(KIND, BLOCK)
    assert ledger.known(piece, first) is None
    assert ledger.parts(piece) == []
    ledger.note(piece, whole, second, 9)
    assert ledger.parts(piece) == [(first, None), (second, 9), (third, None)]
    ledger.believe(piece, crcs)
    assert ledger.note(piece, whole, first, crcs[first]) == (Verdict.RIGHT, 16)
    assert ledger.note(piece, whole, third, 3) == (Verdict.WRONG, 8)


@given(
    stops=st.sets(st.integers(1, 200), min_size=1, max_size=12),
    start=st.integers(0, 199),
    size=st.integers(1, 60),
)
def test_pieces_of_an_extent(stops: set[int], start: int, size: int) -> None:
    """Exactly the pieces that have bytes of an extent are found, whole and in order."""
    ordered = sorted(stops)
    values = [stop * 7 for stop in ordered]
    extent = Extent(start, start + size)
    starts = [0, *ordered[:-1]]
    want = [
        (Extent(a, b), b * 7)
        for a, b in zip(starts, ordered, strict=True)
        if a < extent.stop and b > extent.start
    ]
    assert list(Checksums(CRC32, ordered, values).pieces(extent)) == want
