"""What the tree believes and for how long, which version it means, and what it does on failure."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fusefs.errors import (
    AccessDenied,
    CorruptData,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
    Unsupported,
)
from fusefs.objects import ListPage, ObjectId
from fusefs.tree import listings
from fusefs.tree.inodes import ROOT_INODE, Entry
from fusefs.tree.tree import Tree
from tests.tree.simulated import SimulatedBucket, all_at_once, make_tree, walk

Clock = trio.testing.MockClock


# How long it is believed


async def test_listing_is_believed_for_its_ttl(autojump_clock: Clock) -> None:
    """A listing answers for `ttl_s` from the moment it was asked for, and not longer."""
    bucket = SimulatedBucket(["a"], latency_s=1.0)
    tree = make_tree(bucket, ttl_s=60.0)
    await tree.listing(ROOT_INODE)
    bucket.put("b")
    await trio.sleep(58.9)
    assert len(await tree.listing(ROOT_INODE)) == 1
    await trio.sleep(0.2)
    assert len(await tree.listing(ROOT_INODE)) == 2


async def test_long_listing_ages_from_its_first_page(autojump_clock: Clock) -> None:
    """A listing of many pages is no younger than its first."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10, latency_s=10.0)
    tree = make_tree(bucket, ttl_s=60.0)
    await tree.listing(ROOT_INODE)
    bucket.put("new")
    await trio.sleep(29)
    assert len(await tree.listing(ROOT_INODE)) == 30
    await trio.sleep(1)
    assert len(await tree.listing(ROOT_INODE)) == 31


async def test_absence_is_believed_for_less(autojump_clock: Clock) -> None:
    """An empty directory, and a missing name in a big one, are asked for again after 10 s."""
    for others in ([], [f"d/{i}" for i in range(30)]):
        bucket = SimulatedBucket([*others, "d/"], page_keys=10)
        tree = make_tree(bucket)
        directory = await walk(tree, "d")
        with pytest.raises(ObjectNotFound):
            await tree.lookup(directory.inode, b"late")
        bucket.put("d/late")
        with pytest.raises(ObjectNotFound):
            await tree.lookup(directory.inode, b"late")
        await trio.sleep(10)
        assert (await tree.lookup(directory.inode, b"late")).key == "d/late"


async def test_found_names_are_believed_for_the_ttl(autojump_clock: Clock) -> None:
    """A name found in a big directory answers for `ttl_s`; then the store is asked again."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    await tree.lookup(ROOT_INODE, b"29")
    await trio.sleep(59)
    await tree.lookup(ROOT_INODE, b"29")
    assert bucket.heads == ["29"]
    await trio.sleep(2)
    await tree.lookup(ROOT_INODE, b"29")
    assert bucket.heads == ["29", "29"]


async def test_ttl_of_zero_always_asks(autojump_clock: Clock) -> None:
    """With a TTL of zero every question goes to the store."""
    bucket = SimulatedBucket(["a"])
    tree = make_tree(bucket, ttl_s=0.0)
    for _ in range(3):
        await tree.lookup(ROOT_INODE, b"a")
        await tree.listing(ROOT_INODE)
    assert bucket.requests() == 6


async def test_probing_keeps_a_complete_listing(autojump_clock: Clock) -> None:
    """A directory listed in full stays listed when a lookup asks for its first page only."""
    keys = [f"{i}" for i in range(30)] + [f"d/{i}" for i in range(30)]
    bucket = SimulatedBucket(keys, page_keys=10)
    tree = make_tree(bucket, ttl_s=60.0)
    directory = await walk(tree, "d")
    await trio.sleep(30)
    await tree.listing(directory.inode)
    await trio.sleep(31)
    await tree.lookup(ROOT_INODE, b"d")  # asks again: the answer of a minute ago has expired
    asked = bucket.requests()
    assert len(await tree.listing(directory.inode)) == 30
    assert bucket.requests() == asked


async def test_absent_names_push_out_no_listing(autojump_clock: Clock) -> None:
    """Looking for what is not there keeps answers, but no empty listings."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    for i in range(100, 120):
        with pytest.raises(ObjectNotFound):
            await tree.lookup(ROOT_INODE, str(i).encode())
    known = tree.statistics()
    assert (known.listings_cached, known.names_cached) == (0, 20)


# Versions


async def test_overwritten_object_is_another_inode(autojump_clock: Clock) -> None:
    """A new version has a new inode; the old one stays what it was for those who hold it."""
    bucket = SimulatedBucket()
    bucket.put("f", "v1", size=1)
    tree = make_tree(bucket)
    old = await walk(tree, "f")
    bucket.put("f", "v2", size=2)
    await trio.sleep(61)
    new = await walk(tree, "f")
    assert new.inode != old.inode
    assert tree.get(old.inode).meta != tree.get(new.inode).meta


async def test_same_version_is_the_same_inode_after_forget(autojump_clock: Clock) -> None:
    """Forgotten and looked up again, by this mount or another, a version has the same number."""
    bucket = SimulatedBucket(["d/f"])
    tree = make_tree(bucket)
    inode = (await walk(tree, "d/f")).inode
    tree.forget(inode, 1)
    with pytest.raises(ObjectChanged):
        tree.get(inode)
    await trio.sleep(61)
    assert (await walk(tree, "d/f")).inode == inode
    assert (await walk(make_tree(bucket), "d/f")).inode == inode


async def test_live_entry_is_found_again(autojump_clock: Clock) -> None:
    """While the kernel knows a version, every answer is the one entry it knows."""
    bucket = SimulatedBucket(["d/f"])
    tree = make_tree(bucket)
    entry = await walk(tree, "d/f")
    await trio.sleep(61)
    assert await tree.lookup(entry.parent, b"f") is entry
    assert (await tree.listing(entry.parent))[0] is entry


async def test_entry_of_an_old_snapshot_is_the_one(autojump_clock: Clock) -> None:
    """If the kernel learns a name from an old listing, later answers are that same entry."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    snapshot = await tree.listing(ROOT_INODE)  # a directory handle keeps it past the TTL
    await trio.sleep(61)
    await tree.lookup(ROOT_INODE, b"0")
    tree.remember(snapshot[0])
    assert await tree.lookup(ROOT_INODE, b"0") is snapshot[0]


async def test_stale_version_is_asked_for_again(autojump_clock: Clock) -> None:
    """After `mark_stale` the next lookup asks the store, in small directories and big ones."""
    for others in ([], [f"other-{i}" for i in range(30)]):
        bucket = SimulatedBucket(["f", *others], page_keys=10)
        tree = make_tree(bucket)
        old = await walk(tree, "f")
        bucket.put("f", "v2")
        assert await tree.lookup(ROOT_INODE, b"f") is old
        tree.mark_stale(ObjectId("f", "v1"))
        assert old.stale
        assert tree.siblings(old.inode) is None
        new = await walk(tree, "f")
        assert new.meta is not None
        assert (new.meta.id.etag, new.stale) == ("v2", False)
        asked = bucket.requests()
        tree.mark_stale(ObjectId("f", "v1"))  # eight readers may notice: what is right stays known
        assert await tree.lookup(ROOT_INODE, b"f") is new
        assert bucket.requests() == asked


async def test_answer_under_way_is_not_believed_after_mark_stale(autojump_clock: Clock) -> None:
    """What was asked before a version was found stale is not kept when it arrives after."""
    for others in ([], [f"other-{i}" for i in range(30)]):
        bucket = SimulatedBucket(["f", *others], page_keys=10, latency_s=1.0)
        tree = make_tree(bucket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.lookup, ROOT_INODE, b"f")
            nursery.start_soon(tree.listing, ROOT_INODE)
            await trio.sleep(0.5 if not others else 1.5)
            bucket.put("f", "v2")
            tree.mark_stale(ObjectId("f", "v1"))
        entry = await tree.lookup(ROOT_INODE, b"f")
        assert entry.meta is not None
        assert entry.meta.id.etag == "v2"


async def test_siblings_cost_nothing(autojump_clock: Clock) -> None:
    """The files beside a file are known while its directory's listing is fresh, else None."""
    bucket = SimulatedBucket(["d/1", "d/2", "d/3"])
    tree = make_tree(bucket)
    file = await walk(tree, "d/1")
    asked = bucket.requests()
    siblings = tree.siblings(file.inode)
    assert siblings is not None
    assert [e.name for e in siblings] == [b"1", b"2", b"3"]
    assert tree.siblings(file.parent) is None
    await trio.sleep(61)
    assert tree.siblings(file.inode) is None
    assert bucket.requests() == asked
    with pytest.raises(ObjectChanged):
        tree.siblings(987654321)


# When things fail


async def test_errors_are_everyones_and_not_believed(autojump_clock: Clock) -> None:
    """A failed request fails all who waited for it; the next one asks again."""
    bucket = SimulatedBucket(["a"])
    tree = make_tree(bucket)
    bucket.failure = StoreUnavailable("down")
    results = await all_at_once(
        lambda: tree.lookup(ROOT_INODE, b"a"), lambda: tree.listing(ROOT_INODE)
    )
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
    assert bucket.requests() == 1
    bucket.failure = None
    assert (await tree.lookup(ROOT_INODE, b"a")).key == "a"


async def test_error_of_a_targeted_lookup_is_plain(autojump_clock: Clock) -> None:
    """A failure while asking for one name arrives as itself, not in a group, and is not kept."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    await tree.lookup(ROOT_INODE, b"1")
    bucket.failure = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await tree.lookup(ROOT_INODE, b"29")
    bucket.failure = None
    assert (await tree.lookup(ROOT_INODE, b"29")).key == "29"


async def test_cancelled_lookup_strands_nobody(autojump_clock: Clock) -> None:
    """If the one who asks is interrupted, those who waited with it get their answer."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10, latency_s=1.0)
    tree = make_tree(bucket)
    for cancel_after_s in (0.5, 1.5):  # during the first page; during the targeted lookup
        fresh = make_tree(bucket)
        leader = trio.CancelScope()
        answers: list[Entry] = []

        async def ask(scope: trio.CancelScope, tree: Tree, answers: list[Entry]) -> None:
            with scope:
                answers.append(await tree.lookup(ROOT_INODE, b"29"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, leader, fresh, answers)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(ask, trio.CancelScope(), fresh, answers)
            await trio.sleep(cancel_after_s)
            leader.cancel()
        assert [entry.key for entry in answers] == ["29"] * 3
    assert tree.statistics().names_cached == 0


async def test_listing_that_does_not_end_fails(autojump_clock: Clock) -> None:
    """A store that gives the same page forever gets an error, not a hang."""

    class Broken(SimulatedBucket):
        def page(self, prefix: str, token: str | None) -> ListPage:
            return ListPage((), (), "again")

    with pytest.raises(CorruptData):
        await make_tree(Broken()).listing(ROOT_INODE)


async def test_too_long_a_listing_fails_but_names_do_not(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory beyond the limit is not listed, yet its files are found by name."""
    monkeypatch.setattr(listings, "LISTING_NAMES_MAX", 25)
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    with pytest.raises(Unsupported, match="more than 25 names"):
        await tree.listing(ROOT_INODE)
    assert (await tree.lookup(ROOT_INODE, b"29")).key == "29"


async def test_listing_too_long_for_the_cache_is_not_kept(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds no more names than its limit: a longer listing is given, not kept."""
    monkeypatch.setattr(listings, "NAMES_CACHED_MAX", 25)
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    assert len(await tree.listing(ROOT_INODE)) == 30
    assert tree.statistics().names_cached == 0
    assert len(await tree.listing(ROOT_INODE)) == 30


async def test_statistics_tell_what_is_held(autojump_clock: Clock) -> None:
    """Statistics count live entries, cached listings, their names, files and bytes."""
    bucket = SimulatedBucket(["d/1", "d/2", "f"])
    tree = make_tree(bucket)
    await walk(tree, "d/1")
    known = tree.statistics()
    assert (known.entries_live, known.listings_cached, known.names_cached) == (3, 2, 4)
    assert (known.files_known, known.bytes_known) == (3, 30)
    await trio.sleep(61)
    assert tree.statistics().names_cached == 0
