"""Random reads of large files of unknown kind: what plans add to the blocks that reads touch."""

import random

import pytest

from fusefs.objects import Extent
from fusefs.policy.extents import blocks_of
from fusefs.policy.kinds import Kind
from fusefs.policy.plan import FilePlan, Priority
from tests.policy.test_plan import MIB

KIB = 1024
GIB = 1 << 30


def amount(size: int, low: int, high: int, align: int) -> tuple[int, int, int, int]:
    """Bytes asked, blocks touched, blocks fetched and blocks in vain of 400 random reads."""
    chance = random.Random(1)
    plan = FilePlan(size, MIB, 8, Kind.OPAQUE)
    here: set[int] = set()
    touched: set[int] = set()
    asked = 0
    for _ in range(400):
        length = chance.randint(low, high)
        start = chance.randrange(size - length) // align * align
        extent = Extent(start, start + length)
        plan.access(extent, here.__contains__)
        touched.update(blocks_of(extent, MIB))
        here.update(blocks_of(extent, MIB))
        while run := plan.next_run(Priority.STREAM, here.__contains__):
            here.update(range(run[0], run[0] + run[1]))
        asked += length
    return asked, len(touched), len(here), len(here - touched)


@pytest.mark.parametrize("size", [4 * GIB, 10 * GIB, 200 * GIB])
@pytest.mark.parametrize(
    ("low", "high", "align"),
    [
        (MIB, MIB, MIB),
        (MIB, MIB, 1),
        (MIB, 16 * MIB, 1),
        (64 * KIB, MIB, 1),
        (64 * KIB, 64 * KIB, 4096),
    ],
)
def test_random_reads_bring_next_to_nothing_in_vain(
    size: int, low: int, high: int, align: int
) -> None:
    """At most 5 % of what is fetched was not asked for; reads of a MiB fetch twice that at most."""
    asked, touched, fetched, in_vain = amount(size, low, high, align)
    assert in_vain <= 0.05 * fetched
    assert fetched <= 1.05 * touched + 1
    if low >= MIB:
        assert fetched * MIB <= 2.1 * asked


def test_random_reads_of_a_small_region_do_not_grow_windows() -> None:
    """Index look-ups in a gigabyte that hit the same places again fetch nothing more."""
    chance = random.Random(2)
    plan = FilePlan(GIB, MIB, 8, Kind.OPAQUE)
    places = [chance.randrange(1024) * MIB for _ in range(20)]
    here: set[int] = set()
    for _ in range(500):
        start = chance.choice(places) + chance.randrange(15) * 64 * KIB
        extent = Extent(start, start + 64 * KIB)
        plan.access(extent, here.__contains__)
        here.update(blocks_of(extent, MIB))
        while run := plan.next_run(Priority.STREAM, here.__contains__):
            here.update(range(run[0], run[0] + run[1]))
    assert len(here) <= 2 * len(places)
