"""What the daemon makes of the sums of blocks: the whole is right, or the wrong block is found."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusefs.engine.blocks import State
from fusefs.engine.verifier import Part, Report
from fusefs.errors import ChecksumMismatch, StoreUnavailable
from fusefs.objects import Extent
from fusefs.policy.crc import CRC32
from fusefs.policy.extents import blocks_of, cut_extent
from tests.conftest import ExpectedWarnings
from tests.engine.simulated import BLOCK, Engine, content, open_engine

SIZE = 40 * BLOCK + 9
WANT = content("a.bin", 1, SIZE)


def spoil(engine: Engine, wrong: list[int], whole: int | None = None) -> None:
    """Let blocks in `wrong` arrive with a wrong byte, as often as they are in it.

    What is reported is their CRC, beside one of the whole object: that of its bytes, or `whole`.
    """
    expected = zlib.crc32(WANT) if whole is None else whole

    def arrive(key: str, extent: Extent, piece: bytes) -> tuple[bytes, dict[str, Any]]:
        index = extent.start // BLOCK
        if index in wrong:
            wrong.remove(index)
            piece = bytes([piece[0] ^ 1]) + piece[1:]
        part = Part(Extent(0, SIZE), expected, extent, zlib.crc32(piece))
        return piece, Report(crc=CRC32, parts=(part,)).to_wire()

    engine.bucket.put_bytes("a.bin", WANT)
    engine.workers.arrive = arrive


async def read_blocks(engine: Engine, file: Any, indices: range) -> int:
    """Read block by block; how many came with other bytes. Raises `ChecksumMismatch`."""
    wrong = 0
    for index in indices:
        at = index * BLOCK
        wrong += await engine.read(file, at, BLOCK) != WANT[at : at + BLOCK]
    return wrong


async def test_a_whole_file_adds_up(autojump_clock: trio.testing.MockClock) -> None:
    """Blocks in any order, hedged, lost and fetched again, add up to the CRC of the object."""
    async with open_engine() as engine:
        spoil(engine, [])
        engine.workers.lose_next = 2
        engine.bucket.faults.extend([None, StoreUnavailable("reset"), None])
        engine.workers.delays.extend([0.0, 5.0, 0.0])
        file = engine.open("a.bin")
        assert await read_blocks(engine, file, range(30, 41)) == 0
        assert await read_blocks(engine, file, range(30)) == 0
        assert engine.counters.checksums_verified_bytes >= SIZE
        assert engine.counters.checksum_mismatches == 0
        assert (engine.changed, file.suspicion) == ([], None)


async def test_a_wrong_block_that_nobody_read_is_fetched_again(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """While it is looked for the readers wait; then each gets the right bytes, and no error."""
    expect_warning("came with wrong bytes between 0 and .*: looking for them")
    expect_warning("1 of its blocks had wrong bytes that nobody had read")
    async with open_engine(slots=128) as engine:
        spoil(engine, [40])
        file = engine.open("a.bin")
        file.plan.want_whole(0)
        assert await read_blocks(engine, file, range(41)) == 0
        assert engine.counters.checksum_mismatches == 1
        assert engine.counters.checksums_verified_bytes >= SIZE
        assert (engine.changed, file.suspicion) == ([], None)
        assert file.may_keep_pages()


async def test_a_wrong_block_that_was_read_ends_it(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Nobody reads the object to its end: the last read fails, and all that follow, on any handle.

    Opened anew, every block is fetched again, and it is right.
    """
    expect_warning("looking for them")
    expect_warning("some of them were read before that was known: load it again")
    async with open_engine(slots=128) as engine:
        spoil(engine, [7])
        file, other = engine.open("a.bin"), engine.open("a.bin")
        assert file.may_keep_pages()
        with pytest.raises(ChecksumMismatch, match="load it again"):
            await read_blocks(engine, file, range(41))
        with pytest.raises(ChecksumMismatch):
            await engine.read(other, 0, BLOCK)
        assert not other.may_keep_pages()
        assert engine.changed == [file]
        engine.close(file)
        again = engine.open("a.bin")
        with pytest.raises(ChecksumMismatch):
            await engine.read(again, 0, BLOCK)
        engine.close(again)
        engine.close(other)
        fetched = engine.counters.bytes_fetched
        fresh = engine.open("a.bin")
        assert not fresh.may_keep_pages()
        assert fresh.may_keep_pages()
        assert await read_blocks(engine, fresh, range(41)) == 0
        assert engine.counters.bytes_fetched - fetched == SIZE
        assert engine.counters.checksum_mismatches == 1
        assert engine.counters.checksums_verified_bytes == SIZE


async def test_an_object_that_is_stored_wrong(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """If it never adds up it is fetched three times more, and then the error says why."""
    expect_warning("looking for them")
    expect_warning("4 times: it is stored wrong, most likely")
    async with open_engine(slots=128) as engine:
        spoil(engine, [], whole=zlib.crc32(WANT) ^ 1)
        file = engine.open("a.bin")
        with pytest.raises(ChecksumMismatch, match="uploaded again"):
            await read_blocks(engine, file, range(41))
        sums = sum(extent.size for _, extent in engine.bucket.log) - engine.counters.bytes_fetched
        assert sums == 3 * SIZE


async def test_a_block_that_comes_again_with_other_bytes(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Evicted and fetched again wrong, it is found by what it was before; nobody reads it."""
    expect_warning("looking for them")
    expect_warning("1 of its blocks had wrong bytes that nobody had read")
    async with open_engine(slots=24) as engine:
        wrong: list[int] = []
        spoil(engine, wrong)
        file = engine.open("a.bin")
        assert await read_blocks(engine, file, range(41)) == 0
        assert engine.counters.checksum_mismatches == 0
        assert not file.has(3)
        wrong.append(3)
        assert await engine.read(file, 3 * BLOCK, BLOCK) == WANT[3 * BLOCK : 4 * BLOCK]
        assert wrong == []
        assert engine.counters.checksum_mismatches == 1


async def test_a_store_that_fails_while_it_is_looked_for(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Two failures cost two tries; with a third the object counts as wrong."""
    expect_warning("looking for them")
    expect_warning("nobody had read")
    expect_warning("4 times: it is stored wrong")
    async with open_engine(slots=128) as engine:
        for failures, fails in ((2, False), (3, True)):
            spoil(engine, [40])
            engine.workers.sum_faults.extend([StoreUnavailable("reset")] * failures)
            file = engine.open("a.bin")
            file.plan.want_whole(0)
            if fails:
                with pytest.raises(ChecksumMismatch):
                    await read_blocks(engine, file, range(41))
            else:
                assert await read_blocks(engine, file, range(41)) == 0
            engine.close(file)


async def test_blocks_that_are_here_wait_for_the_verdict(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """A block that was ready before the file became suspect is not read until it is cleared."""
    expect_warning("looking for them")
    expect_warning("nobody had read")
    async with open_engine(slots=128) as engine:
        spoil(engine, [20])
        file = engine.open("a.bin")
        file.plan.want_whole(0)
        assert await read_blocks(engine, file, range(1)) == 0
        while file.suspicion is None:
            await trio.sleep(0.001)
        assert file.blocks[20].state is State.READY
        assert await read_blocks(engine, file, range(20, 21)) == 0
        assert file.suspicion is None


async def test_wrong_bytes_that_were_read_and_replaced(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """A wrong block that was read, evicted, and came right again, is still an error."""
    expect_warning("looking for them")
    expect_warning("load it again")
    async with open_engine(slots=16) as engine:
        spoil(engine, [3])
        file = engine.open("a.bin")
        assert await read_blocks(engine, file, range(3, 4)) == 1
        for index in (10, 14, 18, 22, 26, 30, 34):
            assert await read_blocks(engine, file, range(index, index + 1)) == 0
        while file.has(3):
            await read_blocks(engine, file, range(36, 37))
            await read_blocks(engine, file, range(10, 35, 4))
        with pytest.raises(ChecksumMismatch, match="some of them were read before"):
            await read_blocks(engine, file, range(3, 4))


async def test_what_lands_late_of_a_wrong_file(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Blocks in flight when their file is condemned are ready for nobody, and leave their slots."""
    expect_warning("as said")
    async with open_engine(slots=128) as engine:
        spoil(engine, [])
        file = engine.open("a.bin")
        file.plan.want_whole(0)
        engine.workers.delays.extend([0.0] + [5.0] * 7)
        assert await read_blocks(engine, file, range(1)) == 0
        assert engine.slots.statistics()["fetching"] > 0
        before = engine.slots.statistics()["ready"]
        engine.fetcher.condemn(file, ChecksumMismatch("as said"))
        await trio.sleep(10)
        statistics = engine.slots.statistics()
        assert statistics["fetching"] == 0
        assert [b.state for b in file.blocks.values()] == [State.READY] * statistics["ready"]
        assert statistics["ready"] == before


async def test_who_reads_all_of_it_reads_no_wrong_byte(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """Whatever arrives wrong, in whatever order, however small the arena: it ends with an error.

    Or else every byte was right.
    """
    expect_warning("looking for them")
    expect_warning("nobody had read")
    expect_warning("load it again")
    ends: list[bool] = []
    for seed in range(60):
        chance = random.Random(seed)
        async with open_engine(slots=chance.choice((24, 48, 128))) as engine:
            spoil(engine, chance.choices(range(41), k=chance.randrange(4)))
            file = engine.open("a.bin")
            if chance.random() < 0.5:
                file.plan.want_whole(0)
            order = list(range(41))
            if chance.random() < 0.5:
                chance.shuffle(order)
            wrong = 0
            try:
                for index in order:
                    wrong += await read_blocks(engine, file, range(index, index + 1))
            except ChecksumMismatch:
                ends.append(False)
            else:
                assert wrong == 0, seed
                ends.append(True)
    assert ends.count(True) > 10
    assert ends.count(False) > 10


@given(start=st.integers(0, 500), size=st.integers(1, 300), step=st.integers(1, 64))
def test_an_extent_is_cut_at_multiples(start: int, size: int, step: int) -> None:
    """The pieces make up the extent, and each touches one multiple's block alone."""
    pieces = cut_extent(Extent(start, start + size), step)
    assert pieces[0].start == start
    assert pieces[-1].stop == start + size
    assert all(a.stop == b.start for a, b in pairwise(pieces))
    assert all(len(blocks_of(piece, step)) == 1 and piece.size > 0 for piece in pieces)
