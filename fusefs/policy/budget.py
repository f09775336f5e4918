"""How much memory a mount may take, and how it is shared out.

All numbers are bytes unless named otherwise. Reading the machine's limits is `engine.machine`'s
job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusefs.errors import ConfigError, FusefsError

MIB = 1 << 20

MEMORY_DEFAULT_MAX = 2048 * MIB
"""A quarter of a GPU node would be hundreds of GB; 2 GiB keep a 100 Gbit/s link busy for 160 ms,
which is more than its latency."""

MEMORY_MIN = 16 * MIB
"""Two ranges of 8 MiB: less than that cannot stream."""

RESERVE_FRACTION = 4
"""A quarter of the slots is never filled by prefetch: demand finds room at once."""


WORKERS_INCLUDED = 4
"""Four workers fit the constant of 150 MiB beside the limit (measured: 100 MiB with two, 130 with
four); each further one takes its memory from the arena."""

WORKER_BYTES = 20 * MIB
"""What a worker with its threads and TLS buffers adds: 15 MiB measured, and room to breathe."""


CONNECTIONS_FIRST = 32
"""One connection to an object store carries 50-90 MB/s: 32 fill 20 Gbit/s, and a store that is slow
to answer is asked for more within a second."""

CONNECTIONS_MAX = 256
"""What 10 MB/s per connection need to fill 20 Gbit/s."""

RANGE_BYTES = 8 * MIB
"""From there on, an SDK costs no more CPU per byte than a native client."""

RANGE_BYTES_MAX = 32 * MIB
"""A store that limits requests, not bytes, gives four times as much with it."""


@dataclass(frozen=True, slots=True)
class ArenaBudget:
    """The arena's shape, and what may be in flight into it.

    INVARIANT: 0 < lead_first <= unread_max < slots; 0 < connections_first <= connections_max;
    0 < range_blocks <= range_blocks_max.
    """

    limit: int
    slots: int
    block_size: int
    range_blocks: int
    range_blocks_max: int
    unread_max: int
    lead_first: int
    connections_first: int
    connections_max: int

    @property
    def size_bytes(self) -> int:
        """The arena's size."""
        return self.slots * self.block_size


DESCRIPTORS_MIN = 128
"""Open files a process of ours may need: the daemon's 25, 64 peers, and room to start others."""

DESCRIPTORS_BESIDE = 48
"""What a worker has open beside its connections: 12 at rest, twice that while names are resolved
and certificates read."""


def within_descriptors(budget: ArenaBudget, workers: int, descriptors: int) -> ArenaBudget:
    """No more connections than each worker may have open files for.

    Raises FusefsError if there are too few for a mount.
    """
    if descriptors < DESCRIPTORS_MIN:
        raise FusefsError(
            f"a process may have {descriptors} files open here, and a mount needs"
            f" {DESCRIPTORS_MIN}: raise the limit with ulimit -n or LimitNOFILE="
        )
    most = workers * (descriptors - DESCRIPTORS_BESIDE)
    return replace(
        budget,
        connections_first=min(budget.connections_first, most),
        connections_max=min(budget.connections_max, most),
    )


def memory_limit(wanted: int | None, available: int) -> int:
    """The limit in bytes: what the user said, or a quarter of what there is, at most 2 GiB."""
    if wanted is None:
        return max(MEMORY_MIN, min(available // 4, MEMORY_DEFAULT_MAX))
    if wanted < MEMORY_MIN:
        raise ConfigError(
            f"memory must be at least {MEMORY_MIN // MIB} MiB, but {wanted // MIB} MiB were given"
        )
    return wanted


def arena_budget(
    limit: int, workers: int, block_size: int, range_size: int | None, connections: int | None
) -> ArenaBudget:
    """Share out `limit`: the arena takes all of it, prefetch up to three quarters of the slots.

    A range is at most an eighth of the arena, so that a small one still has several in flight. What
    may be in flight or unread at first is one range for each connection: with less some of them
    stand idle, and more only touches more memory, unless the reader comes in bursts.

    None for `range_size` or `connections` lets them follow what is measured, within what memory
    allows: at first as many connections as there is room for full ranges, at most one for each
    block. A number is never exceeded.

    Raises ConfigError if many workers leave too little.
    """
    extra = max(0, workers - WORKERS_INCLUDED) * WORKER_BYTES
    if extra and limit - extra < MEMORY_MIN:
        raise ConfigError(
            f"{workers} workers need more memory than {limit // MIB} MiB: raise memory to at least "
            f"{(extra + MEMORY_MIN) // MIB} MiB or take fewer workers"
        )
    slots = max(2, (limit - extra) // block_size)
    unread_max = max(1, slots - max(1, slots // RESERVE_FRACTION))
    range_blocks = max(1, min((range_size or RANGE_BYTES) // block_size, slots // 8))
    range_blocks_max = max(1, min((range_size or RANGE_BYTES_MAX) // block_size, slots // 8))
    connections_max = connections or min(CONNECTIONS_MAX, max(2, unread_max))
    connections_first = connections or min(
        CONNECTIONS_FIRST, connections_max, max(2, unread_max // range_blocks)
    )
    return ArenaBudget(
        limit=limit,
        slots=slots,
        block_size=block_size,
        range_blocks=range_blocks,
        range_blocks_max=range_blocks_max,
        unread_max=unread_max,
        lead_first=max(1, min(unread_max, connections_first * range_blocks)),
        connections_first=connections_first,
        connections_max=connections_max,
    )
