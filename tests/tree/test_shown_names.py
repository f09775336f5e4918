"""What a mount shows of any bucket, against the plainest definition of it.

The reference is a sentence: a file is shown if every segment of its key has a name and no other key
lies below it; a directory is shown if a key lies below it, or it is itself a marker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from fusefs.errors import ObjectNotFound
from fusefs.tree.inodes import ROOT_INODE
from fusefs.tree.listings import OBJECT_BYTES_MAX
from fusefs.tree.names import name_of
from fusefs.tree.tree import Tree
from tests.conftest import ExpectedWarnings
from tests.tree.simulated import SimulatedBucket, make_tree

segments = st.one_of(
    st.sampled_from(
        ["", ".", "..", ".fusefs", "a", "b", "a-", "é", "\0", "x" * 256, "\udcff", "\ud800"]
    ),
    st.text(max_size=3),
)
keys = st.lists(segments, min_size=1, max_size=4).map("/".join).filter(bool)
buckets = st.sets(keys, max_size=12)

Shown = dict[bytes, bool]
"""Every path, and whether it is a directory."""


def _expected(bucket: set[str]) -> Shown:
    shown: Shown = {}
    for key in bucket:
        names: list[bytes] = []
        segments = key.split("/")
        for depth, segment in enumerate(segments, start=1):
            name = name_of(segment)
            if name is None:
                break
            names.append(name)
            is_prefix = depth < len(segments)
            path = b"/".join(names)
            shown[path] = shown.get(path, False) or is_prefix
    return shown


async def _show(tree: Tree, inode: int = ROOT_INODE, above: bytes = b"") -> Shown:
    shown: Shown = {}
    listing = await tree.listing(inode)
    assert [e.name for e in listing] == sorted({e.name for e in listing})
    for entry in listing:
        path = above + entry.name
        shown[path] = entry.is_directory
        if entry.is_directory:
            tree.remember(entry)
            shown |= await _show(tree, entry.inode, path + b"/")
    return shown


async def _find(tree: Tree, path: bytes) -> bool:
    inode, is_directory = ROOT_INODE, True
    for name in path.split(b"/"):
        entry = await tree.lookup(inode, name)
        tree.remember(entry)
        inode, is_directory = entry.inode, entry.is_directory
    return is_directory


@contextmanager
def _without_reports() -> Iterator[None]:
    """Nearly every example hides names, and says so: that is tested in test_tree."""
    log = logging.getLogger("fusefs.tree")
    log.disabled = True
    yield
    log.disabled = False


def _run(check: object) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    with _without_reports():
        trio.run(check, clock=clock)  # type: ignore[arg-type]


@given(buckets, st.sampled_from([1, 2, 3, 1000]))
@example({"a", "a/b", "a-", "a//c", "a/../d", "/e", "f/"}, 1)
def test_any_bucket_is_shown_as_defined(bucket: set[str], page_keys: int) -> None:
    """Whatever the keys and the page size, exactly the defined files and directories are listed."""

    async def check() -> None:
        tree = make_tree(SimulatedBucket(bucket, page_keys))
        assert await _show(tree) == _expected(bucket)

    _run(check)


@given(buckets, st.sampled_from([1, 2, 3]))
@example({"a", "a-", "a/b"}, 1)
def test_names_found_one_by_one_are_those_listed(bucket: set[str], page_keys: int) -> None:
    """Lookups in big directories, which use no listing, find exactly what a listing shows."""

    async def check() -> None:
        expected = _expected(bucket)
        tree = make_tree(SimulatedBucket(bucket, page_keys))
        for path, is_directory in expected.items():
            assert await _find(tree, path) == is_directory
        for name in (b"a", b"b", b"absent", b"\xff", "é".encode()):
            if name not in expected:
                try:
                    await _find(tree, name)
                except ObjectNotFound:
                    continue
                raise AssertionError(f"{name!r} was found")

    _run(check)


@given(buckets)
def test_every_file_has_an_inode_of_its_own(bucket: set[str]) -> None:
    """No two shown paths share an inode, and a second mount gives the same numbers."""

    async def numbers() -> list[int]:
        tree = make_tree(SimulatedBucket(bucket))
        found: list[int] = []
        pending = [ROOT_INODE]
        while pending:
            for entry in await tree.listing(pending.pop()):
                tree.remember(entry)
                found.append(entry.inode)
                if entry.is_directory:
                    pending.append(entry.inode)
        return found

    async def check() -> None:
        first = await numbers()
        assert len(set(first)) == len(first)
        assert await numbers() == first

    _run(check)


async def test_an_object_of_exabytes_is_hidden(
    autojump_clock: trio.testing.MockClock, expect_warning: ExpectedWarnings
) -> None:
    """In listings and when it is asked for by name: it would take memory, and cannot be."""
    expect_warning("huge")
    for page_keys in (1000, 1):  # 1: the directory is big, and names are asked for one by one
        bucket = SimulatedBucket(["a", "b"], page_keys)
        bucket.put("huge", size=OBJECT_BYTES_MAX + 1)
        bucket.put("large", size=OBJECT_BYTES_MAX)
        tree = make_tree(bucket)
        with pytest.raises(ObjectNotFound):
            await tree.lookup(ROOT_INODE, b"huge")
        assert (await tree.lookup(ROOT_INODE, b"large")).meta == bucket.objects["large"]
        assert b"huge" not in {entry.name for entry in await tree.listing(ROOT_INODE)}
