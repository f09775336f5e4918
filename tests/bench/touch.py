"""A child that touches N bytes of memory and ends: `python -m tests.bench.touch BYTES`.

On a virtual machine the host takes back memory that is idle; the first touch afterwards costs 5-40
times a warm one and drowns what is measured. Touching and freeing right before each round pays it
there. Huge pages make it quick.
"""

from __future__ import annotations

import mmap
import sys

HUGE_PAGE_BYTES = 2 << 20


def main() -> None:
    """Touch one byte per page of anonymous memory."""
    size = -(-int(sys.argv[1]) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        # A huge page that could not be had falls back to small ones: touch every small page.
        memory[:: mmap.PAGESIZE] = b"\1" * (size // mmap.PAGESIZE)


if __name__ == "__main__":
    main()
