"""Reading a directory in pieces, while it changes and while those who answer are replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.objects import ObjectId, ObjectMeta
from fusefs.tree.inodes import Entry, Inodes
from fusefs.tree.streams import FIRST_COOKIE, in_cookie_order

NAMES = st.sets(st.binary(min_size=1, max_size=3), max_size=60)


def entries_of(names: set[bytes]) -> list[Entry]:
    """Files of these names, each in another version than before."""
    inodes = Inodes("")
    return [
        inodes.file(1, name, ObjectMeta(ObjectId(name.hex(), "v"), 1, 1)) for name in sorted(names)
    ]


@given(stays=NAMES, others=st.lists(NAMES, min_size=1, max_size=6), size=st.integers(1, 20))
def test_what_stays_is_shown_once(stays: set[bytes], others: list[set[bytes]], size: int) -> None:
    """Each piece is of another listing; a name that is in all of them is shown exactly once."""
    seen: list[bytes] = []
    cookie, piece = FIRST_COOKIE - 1, 0
    while True:
        names = stays | others[piece % len(others)]
        piece += 1
        cookies, entries = in_cookie_order(entries_of(names))
        after = [(c, e.name) for c, e in zip(cookies, entries, strict=True) if c > cookie][:size]
        if not after:
            break
        seen.extend(name for _, name in after)
        cookie = after[-1][0]
    assert sorted(name for name in seen if name in stays) == sorted(stays)
    assert len(seen) == len(set(seen))


@given(NAMES)
def test_cookies_grow_and_fit_the_kernels_offset(names: set[bytes]) -> None:
    """Strictly, from the first one that is not "." or ".." on, within 63 bits."""
    cookies, entries = in_cookie_order(entries_of(names))
    assert cookies == sorted(set(cookies))
    assert all(FIRST_COOKIE <= cookie < 1 << 63 for cookie in cookies)
    assert {entry.name for entry in entries} == names
