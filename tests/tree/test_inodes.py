"""Which number an entry has, and how long it lives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import InternalError, ObjectChanged
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.tree.inodes import LOWEST_INODE, ROOT_INODE, Entry, Inodes


def _meta(key: str = "a/f", etag: str = "v1", mtime_ns: int = 0) -> ObjectMeta:
    return ObjectMeta(ObjectId(key, etag), 10, mtime_ns)


def _collider(number: int) -> Entry:
    """Another file that, by the worst of luck, has this number."""
    return Entry(number, ROOT_INODE, b"other", "other", _meta("other"))


@given(st.text(), st.text(), st.text(), st.text())
def test_number_is_the_version(key: str, etag: str, other_key: str, other_etag: str) -> None:
    """Same key and etag, same number in any process; anything else differs."""
    one = Inodes("").file(ROOT_INODE, b"f", _meta(key, etag)).inode
    other = Inodes("").file(ROOT_INODE, b"f", _meta(other_key, other_etag)).inode
    assert (one == other) == ((key, etag) == (other_key, other_etag))
    assert LOWEST_INODE <= one < 2**64


def test_number_is_the_same_in_every_release() -> None:
    """The hash is part of what a restarted mount relies on: it does not change."""
    assert Inodes("").file(ROOT_INODE, b"f", _meta()).inode == 3529595917924331938
    assert Inodes("").directory(ROOT_INODE, b"a", "a/").inode == 2462815347858638222


def test_a_file_is_no_directory() -> None:
    """A file and a directory of the same text have different numbers."""
    inodes = Inodes("")
    file = inodes.file(ROOT_INODE, b"a", _meta("a/", ""))
    assert file.inode != inodes.directory(ROOT_INODE, b"a", "a/").inode


def test_collision_with_a_live_entry_takes_another_number() -> None:
    """Two live versions never share a number, and the second number is found again."""
    inodes = Inodes("")
    taken = inodes.file(ROOT_INODE, b"f", _meta()).inode
    inodes.remember(_collider(taken))

    entry = inodes.file(ROOT_INODE, b"f", _meta())
    assert entry.inode != taken
    inodes.remember(entry)
    assert inodes.file(ROOT_INODE, b"f", _meta()) is entry
    inodes.mark_stale(ObjectId("a/f", "v1"))
    assert entry.stale


def test_collision_that_arises_late_is_an_error() -> None:
    """A number that another version took meanwhile is refused, not shared."""
    inodes = Inodes("")
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    inodes.remember(_collider(entry.inode))
    with pytest.raises(InternalError):
        inodes.remember(entry)


def test_entry_lives_while_the_kernel_knows_it() -> None:
    """An entry is known from the first reference to the return of the last."""
    inodes = Inodes("")
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    with pytest.raises(ObjectChanged):
        inodes.get(entry.inode)
    inodes.remember(entry)
    inodes.remember(entry, 2)
    inodes.forget(entry.inode, 2)
    assert inodes.get(entry.inode) is entry
    inodes.forget(entry.inode, 1)
    with pytest.raises(ObjectChanged):
        inodes.get(entry.inode)


def test_entry_lives_while_it_is_open() -> None:
    """FORGET of an open file does not lose it; its RELEASE does."""
    inodes = Inodes("")
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    inodes.remember(entry)
    assert inodes.acquire(entry.inode) is entry
    inodes.forget(entry.inode, 1)
    assert inodes.get(entry.inode) is entry
    inodes.release(entry.inode)
    assert len(inodes) == 1


def test_twins_count_as_one() -> None:
    """References to two entries made of the same version add up in the live one."""
    inodes = Inodes("")
    twins = [inodes.file(ROOT_INODE, b"f", _meta()) for _ in range(2)]
    for twin in twins:
        inodes.remember(twin)
    assert inodes.get(twins[1].inode) is twins[0]
    assert inodes.live(twins[1]) is twins[0]
    assert twins[0].lookups == 2


def test_root_is_never_forgotten() -> None:
    """The root is there whatever the kernel says."""
    inodes = Inodes("models/")
    inodes.remember(inodes.get(ROOT_INODE))
    inodes.forget(ROOT_INODE, 10)
    root = inodes.acquire(ROOT_INODE)
    inodes.release(ROOT_INODE)
    assert (inodes.get(ROOT_INODE), root.key, root.parent) == (root, "models/", ROOT_INODE)


def test_forget_of_the_unknown_is_ignored() -> None:
    """References given to a process that is gone come back to its successor, who shrugs."""
    inodes = Inodes("")
    inodes.forget(123456, 7)
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    inodes.remember(entry)
    inodes.forget(entry.inode, 7)
    assert (len(inodes), entry.lookups) == (1, 0)


def test_release_without_acquire_is_a_defect() -> None:
    """An unbalanced release is reported instead of closing somebody else's handle."""
    inodes = Inodes("")
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    inodes.remember(entry)
    with pytest.raises(InternalError):
        inodes.release(entry.inode)


def test_version_that_returns_is_not_stale() -> None:
    """If the store names a stale version as current again, its live entry is good again."""
    inodes = Inodes("")
    entry = inodes.file(ROOT_INODE, b"f", _meta())
    inodes.remember(entry)
    inodes.mark_stale(ObjectId("a/f", "v1"))
    assert entry.stale
    again = inodes.file(ROOT_INODE, b"f", _meta(mtime_ns=7))
    assert again is entry
    assert again.meta == _meta(mtime_ns=7)
    assert not again.stale
