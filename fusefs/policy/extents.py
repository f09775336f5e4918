"""Arithmetic between byte extents and block numbers."""

from __future__ import annotations

from fusefs.objects import Extent


def block_count(size: int, block_size: int) -> int:
    """How many blocks an object of `size` bytes has; the last one may be short."""
    return -(-size // block_size)


def blocks_of(extent: Extent, block_size: int) -> range:
    """The block numbers that a non-empty extent touches."""
    return range(extent.start // block_size, (extent.stop - 1) // block_size + 1)


def extent_of(first: int, count: int, block_size: int, size: int) -> Extent:
    """The bytes of `count` blocks from `first`, cut at the object's end."""
    return Extent(first * block_size, min((first + count) * block_size, size))


def cut_extent(extent: Extent, size: int) -> list[Extent]:
    """The extent, cut at the multiples of `size` in it."""
    starts = [extent.start, *range((extent.start // size + 1) * size, extent.stop, size)]
    return [Extent(a, b) for a, b in zip(starts, [*starts[1:], extent.stop], strict=True)]
