"""Objects without a mount: which one a SOURCE names, and its bytes in order, of one version.

The one idea of reading: a few pieces are asked for ahead of the one that is wanted, since a single
stream is slow; how many is bounded, and so is memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from fusefs.errors import ConfigError
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Source, Store
from fusefs.transfer.crew import Crew
from fusefs.transfer.remote import PIECE_BYTES


def split_object(source: Source) -> tuple[Source, str]:
    """The source that holds the object which the whole of `source` names, and the object's key.

    Raises `ConfigError` if it can name none: a bucket's root.
    """
    if source.prefix:
        key = source.prefix.removesuffix("/")
        if source.scheme in ("redis", "rediss"):
            # Where a model's name ends and a file's begins is known by the server alone.
            return replace(source, bucket="", prefix=""), key
        return replace(source, prefix=key.removesuffix(key.rpartition("/")[2])), key
    if source.scheme == "file" and source.bucket != "/":
        folder, _, name = source.bucket.rpartition("/")
        return replace(source, bucket=folder or "/"), name
    raise ConfigError(f"{source.text} names no object: add its name")


def read_in_order(
    store: Store, crew: Crew, meta: ObjectMeta, extent: Extent
) -> Iterator[memoryview]:
    """The bytes of this extent of this version, piece by piece. Raises `ObjectChanged`."""

    def read(start: int) -> memoryview:
        piece = Extent(start, min(start + PIECE_BYTES, extent.stop))
        view = memoryview(bytearray(piece.size))
        crew.retry(lambda: store.read_into(meta.id, piece, view))
        return view

    asked: deque[Future[memoryview]] = deque()
    pool = ThreadPoolExecutor(crew.size)
    try:
        for start in range(extent.start, extent.stop, PIECE_BYTES):
            asked.append(pool.submit(read, start))
            if len(asked) >= crew.size:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()
    finally:
        crew.stop()
        pool.shutdown(cancel_futures=True)
