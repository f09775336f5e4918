"""Looking at a bucket: whole listings, objects below a prefix, small objects in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fusefs.errors import CorruptData, ObjectNotFound
from fusefs.objects import Extent, ListPage, ObjectMeta
from fusefs.store.base import Store
from fusefs.transfer.crew import Crew

PIECE_BYTES = 8 << 20
"""One request: as the mount's ranges, large enough for full speed and small enough to hold many."""


def list_folder(store: Store, crew: Crew, prefix: str) -> Iterator[ListPage]:
    """All pages of what lies directly below `prefix`."""
    token: str | None = None
    while True:
        page = crew.retry(_asking(store, prefix, token))
        yield page
        if page.next_token is None:
            return
        if page.next_token == token:
            raise CorruptData(f"the listing of {prefix!r} does not end: same page twice")
        token = page.next_token


def list_below(
    store: Store, crew: Crew, prefix: str, skip: Callable[[str], bool]
) -> Iterator[ObjectMeta]:
    """Every object below `prefix` at any depth, but below folders that `skip` (prefixes) tells."""
    waiting = [prefix]
    while waiting:
        folder = waiting.pop()
        for page in list_folder(store, crew, folder):
            yield from page.objects
            # A prefix that is not below its folder would send us round in circles.
            waiting += [
                p for p in page.prefixes if p.startswith(folder) and p != folder and not skip(p)
            ]


def read_small(store: Store, crew: Crew, key: str, bytes_max: int) -> bytes | None:
    """A whole small object, or None if it is not there. Raises `CorruptData` if it is large."""
    try:
        meta = crew.retry(lambda: store.head(key))
    except ObjectNotFound:
        return None
    if meta.size > bytes_max:
        raise CorruptData(f"{key!r} is {meta.size} bytes, too large for what it should be")
    data = bytearray(meta.size)
    if data:
        crew.retry(lambda: store.read_into(meta.id, Extent(0, meta.size), memoryview(data)))
    return bytes(data)


def _asking(store: Store, prefix: str, token: str | None) -> Callable[[], ListPage]:
    return lambda: store.list_page(prefix, token)
