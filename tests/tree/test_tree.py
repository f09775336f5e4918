"""What the tree shows, and what it asks the store for it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fusefs.errors import ObjectChanged, ObjectNotFound
from fusefs.telemetry.counters import Counters
from fusefs.tree.inodes import ROOT_INODE, NotADirectory
from tests.conftest import ExpectedWarnings
from tests.tree.simulated import SimulatedBucket, all_at_once, make_tree, walk

Clock = trio.testing.MockClock


# What is shown


async def test_listing_shows_files_and_directories_by_name(autojump_clock: Clock) -> None:
    """A listing holds the files and directories directly below, by name, and nothing else."""
    bucket = SimulatedBucket(["m/b", "m/a/x", "m/a/y", "m/", "m/c/d/e", "other"])
    tree = make_tree(bucket, prefix="m/")
    shown = await tree.listing(ROOT_INODE)
    assert [(e.name, e.key, e.is_directory, e.parent) for e in shown] == [
        (b"a", "m/a/", True, ROOT_INODE),
        (b"b", "m/b", False, ROOT_INODE),
        (b"c", "m/c/", True, ROOT_INODE),
    ]


async def test_lookup_and_listing_agree(autojump_clock: Clock) -> None:
    """A name looked up is the entry that the listing shows."""
    tree = make_tree(SimulatedBucket(["a/x"]))
    directory = await walk(tree, "a")
    (listed,) = await tree.listing(directory.inode)
    assert await tree.lookup(directory.inode, b"x") is listed
    assert listed.meta is not None
    assert (listed.parent, listed.meta.size) == (directory.inode, 10)


async def test_directory_marker_makes_a_directory(autojump_clock: Clock) -> None:
    """A key that ends in a slash is a directory, maybe empty, and no file in it."""
    tree = make_tree(SimulatedBucket(["empty/"]))
    directory = await walk(tree, "empty")
    assert directory.is_directory
    assert await tree.listing(directory.inode) == ()


async def test_directory_wins_over_the_object(
    autojump_clock: Clock, expect_warning: ExpectedWarnings
) -> None:
    """A key that is also a prefix shows as the directory; the object is counted and logged."""
    expect_warning("1 keys below '' cannot be shown as files, for instance 'a'")
    counters = Counters()
    tree = make_tree(SimulatedBucket(["a", "a/b"]), counters=counters)
    assert (await walk(tree, "a")).is_directory
    assert not (await walk(tree, "a/b")).is_directory
    assert counters.names_hidden == 1


async def test_hidden_names_are_reported_once(
    autojump_clock: Clock, expect_warning: ExpectedWarnings, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a directory is listed, its hidden keys are counted and logged once."""
    expect_warning("3 keys below 'd/' cannot be shown")
    counters = Counters()
    bucket = SimulatedBucket(["d/../x", "d//y", "d/" + "z" * 300, "d/shown"])
    tree = make_tree(bucket, counters=counters)
    directory = await walk(tree, "d")
    for _ in range(3):
        assert [e.name for e in await tree.listing(directory.inode)] == [b"shown"]
        await trio.sleep(100)
    assert counters.names_hidden == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"nul\0", b"x" * 256])
async def test_names_no_key_can_have_cost_nothing(autojump_clock: Clock, name: bytes) -> None:
    """A name that no object can be shown as is not found, without a request."""
    bucket = SimulatedBucket(["a"])
    with pytest.raises(ObjectNotFound):
        await make_tree(bucket).lookup(ROOT_INODE, name)
    assert bucket.requests() == 0


async def test_below_a_file_is_nothing(autojump_clock: Clock) -> None:
    """Looking up or listing below a file is ENOTDIR, below an unknown inode ESTALE."""
    tree = make_tree(SimulatedBucket(["a"]))
    file = await walk(tree, "a")
    with pytest.raises(NotADirectory):
        await tree.lookup(file.inode, b"x")
    with pytest.raises(NotADirectory):
        await tree.listing(file.inode)
    with pytest.raises(ObjectChanged):
        await tree.lookup(987654321, b"x")
    with pytest.raises(ObjectChanged):
        await tree.listing(987654321)


# What is asked


async def test_ten_thousand_objects_are_ten_requests(autojump_clock: Clock) -> None:
    """Listing 10,000 objects takes 10 listing requests, and looking each up takes none."""
    bucket = SimulatedBucket(f"shard-{i:05}" for i in range(10_000))
    counters = Counters()
    tree = make_tree(bucket, counters=counters)
    shown = await tree.listing(ROOT_INODE)
    assert len(shown) == 10_000
    for entry in shown:
        tree.remember(entry)
    for entry in shown:
        assert await tree.lookup(ROOT_INODE, entry.name) is entry
    assert (len(bucket.lists), len(bucket.heads)) == (10, 0)
    assert counters.list_hits == 10_000


async def test_one_request_serves_a_small_directory(autojump_clock: Clock) -> None:
    """The first lookup brings the listing; then no name, present or not, costs a request."""
    bucket = SimulatedBucket([f"m/{i}" for i in range(900)])
    tree = make_tree(bucket)
    directory = await walk(tree, "m")
    for i in range(900):
        await tree.lookup(directory.inode, str(i).encode())
    with pytest.raises(ObjectNotFound):
        await tree.lookup(directory.inode, b"absent")
    await tree.listing(directory.inode)
    assert (bucket.lists, bucket.heads) == (["", "m/"], [])


async def test_concurrent_questions_are_asked_once(autojump_clock: Clock) -> None:
    """Lookups and listings of one directory at the same time share its pages."""
    bucket = SimulatedBucket(["a", "b"])
    tree = make_tree(bucket)
    await all_at_once(
        lambda: tree.lookup(ROOT_INODE, b"a"),
        lambda: tree.lookup(ROOT_INODE, b"b"),
        lambda: tree.listing(ROOT_INODE),
        lambda: tree.listing(ROOT_INODE),
        lambda: tree.lookup(ROOT_INODE, b"absent"),
    )
    assert bucket.requests() == 1


async def test_concurrent_long_listings_are_asked_once(autojump_clock: Clock) -> None:
    """Listings of a big directory at the same time page through it once, a lookup beside them."""
    bucket = SimulatedBucket([str(i) for i in range(45)], page_keys=10)
    tree = make_tree(bucket)
    results = await all_at_once(
        lambda: tree.lookup(ROOT_INODE, b"44"),
        lambda: tree.listing(ROOT_INODE),
        lambda: tree.listing(ROOT_INODE),
    )
    assert isinstance(results[1], tuple)
    assert len(results[1]) == 45
    assert results[1] is results[2]
    assert (bucket.lists.count(""), bucket.lists.count("44/"), bucket.heads) == (5, 1, ["44"])


async def test_big_directory_is_asked_by_name(autojump_clock: Clock) -> None:
    """In a directory of many pages each name costs a HEAD and a LIST at once, then nothing."""
    bucket = SimulatedBucket([str(i) for i in range(30)] + ["7/below", "d/x"], page_keys=10)
    tree = make_tree(bucket)
    before_s = trio.current_time()
    file = await tree.lookup(ROOT_INODE, b"29")
    assert trio.current_time() - before_s == pytest.approx(2 * bucket.latency_s)
    assert (bucket.lists, bucket.heads) == (["", "29/"], ["29"])
    assert not file.is_directory

    assert (await tree.lookup(ROOT_INODE, b"d")).is_directory
    assert (await tree.lookup(ROOT_INODE, b"7")).is_directory  # also an object: the directory wins
    with pytest.raises(ObjectNotFound):
        await tree.lookup(ROOT_INODE, b"absent")
    assert bucket.requests() == 3 + 3 * 2
    for name in (b"29", b"d", b"7"):
        await tree.lookup(ROOT_INODE, name)
    with pytest.raises(ObjectNotFound):
        await tree.lookup(ROOT_INODE, b"absent")
    assert bucket.requests() == 3 + 3 * 2


async def test_big_directory_single_flight_by_name(autojump_clock: Clock) -> None:
    """The same name looked up by many at once in a big directory is asked for once."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    results = await all_at_once(*[lambda: tree.lookup(ROOT_INODE, b"29")] * 8)
    assert len({id(result) for result in results}) == 1
    assert (len(bucket.lists), len(bucket.heads)) == (2, 1)


async def test_directory_found_by_name_is_listed_already(autojump_clock: Clock) -> None:
    """The request that finds out that a prefix is a directory serves what is below it, too."""
    bucket = SimulatedBucket([f"m{i}/weights" for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    await walk(tree, "m29/weights")
    assert bucket.lists == ["", "m29/"]


async def test_directory_known_only_by_its_marker(autojump_clock: Clock) -> None:
    """In a big directory, too, an empty directory is one if its marker is there."""
    bucket = SimulatedBucket([f"{i}" for i in range(30)] + ["empty/"], page_keys=10)
    assert (await walk(make_tree(bucket), "empty")).is_directory


async def test_unlisted_name_is_found_after_a_probe_missed_it(autojump_clock: Clock) -> None:
    """That a prefix was empty once hides nothing uploaded below it once the absence has expired."""
    bucket = SimulatedBucket([str(i) for i in range(30)], page_keys=10)
    tree = make_tree(bucket)
    with pytest.raises(ObjectNotFound):
        await tree.lookup(ROOT_INODE, b"new")
    bucket.put("new/file")
    await trio.sleep(10)
    assert (await walk(tree, "new/file")).meta is not None
