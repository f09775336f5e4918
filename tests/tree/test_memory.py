"""What a remembered name costs: the limits in `listings` and `tree` are made of these numbers."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import nullcontext

import pytest
import trio
import trio.testing

from fusefs.errors import ObjectNotFound
from fusefs.objects import ListPage, ObjectId, ObjectMeta
from fusefs.tree.inodes import ROOT_INODE
from fusefs.tree.listings import NAMES_CACHED_MAX
from fusefs.tree.tree import ANSWERS_CACHED_MAX
from tests.tree.simulated import SimulatedBucket, make_tree

_NAMES = 2500


class _Pages(SimulatedBucket):
    """Makes every page anew, as a real store does: nothing measured is shared with it."""

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        start, stop = int(token or 0), int(token or 0) + self.page_keys
        if prefix != "model-name/":
            return ListPage((), (), None)
        objects = tuple(_meta(number) for number in range(start, min(stop, _NAMES)))
        return ListPage(objects, (), str(stop) if stop < _NAMES else None)

    async def head(self, key: str) -> ObjectMeta:
        meta = _meta(int(key.partition("/model-")[2][:5] or 0))
        if meta.id.key != key:
            raise ObjectNotFound("no such object")
        return meta


def _meta(number: int) -> ObjectMeta:
    key = f"model-name/model-{number:05}-of-10000.safetensors"
    return ObjectMeta(ObjectId(key, f"{number:032x}"), 5 << 30, 1_700_000_000_000_000_000 + number)


def _held_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_listed_names_stay_below_60_mb(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """100,000 names in listings stay below 60 MB."""
    tree = make_tree(_Pages(), prefix="model-name/")
    tracemalloc.start()
    try:
        before = _held_bytes()
        await tree.listing(ROOT_INODE)
        per_name = (_held_bytes() - before) / _NAMES
    finally:
        tracemalloc.stop()
    print(f"listed: {per_name:.0f} bytes per name")
    assert tree.statistics().names_cached == _NAMES
    assert per_name * NAMES_CACHED_MAX <= 60e6


@pytest.mark.parametrize("present", [True, False])
async def test_answers_by_name_stay_below_45_mb(
    autojump_clock: trio.testing.MockClock, present: bool
) -> None:
    """50,000 answers about single names, of files or of nothing, stay below 45 MB."""
    tree = make_tree(_Pages(latency_s=0), prefix="model-name/")
    tracemalloc.start()
    try:
        before = _held_bytes()
        for number in range(_NAMES):
            name = _meta(number).id.key.removeprefix("model-name/" if present else "model-n")
            with nullcontext() if present else pytest.raises(ObjectNotFound):
                await tree.lookup(ROOT_INODE, name.replace("/", "-").encode())
        per_name = (_held_bytes() - before) / _NAMES
    finally:
        tracemalloc.stop()
    print(f"asked by name, present={present}: {per_name:.0f} bytes per name")
    assert tree.statistics().names_cached == _NAMES
    assert per_name * ANSWERS_CACHED_MAX <= 45e6
