"""The counters of one mount: plain integers, bumped where things happen, copied into `status`.

Names are part of the documented interface (`fusefs status --json`): add, never rename. Only the
daemon's trio thread writes them, so no lock is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """All counters start at zero with the mount and only grow."""

    bytes_fetched: int = 0
    """Object bytes that arrived from the store."""
    bytes_read: int = 0
    """Bytes handed to the kernel in READ replies."""
    bytes_pushed: int = 0
    """Bytes pushed into the page cache without a READ."""
    pushed_pages_lost_bytes: int = 0
    """Bytes pushed that were asked for again, since the kernel had let go of them."""
    pushes_failed: int = 0
    """Pushes that the kernel refused; reads serve those bytes."""
    prefetch_wasted_bytes: int = 0
    """Bytes prefetched and given up before anything read them."""
    requests: int = 0
    """Requests made to the store: the sum of the next three."""
    requests_read: int = 0
    requests_list: int = 0
    requests_head: int = 0
    reads: int = 0
    """READ requests the kernel sent."""
    hits: int = 0
    """Reads whose bytes were all in the arena already."""
    joins: int = 0
    """Reads that only waited for fetches already under way."""
    misses: int = 0
    """Reads that started a fetch."""
    retries: int = 0
    """Fetches tried again after a failure."""
    fetch_errors: int = 0
    """Fetches that failed, retried or not."""
    checksums_verified_bytes: int = 0
    """Bytes that were compared with a checksum, and were right."""
    checksums_missing_bytes: int = 0
    """Bytes that came, with checksums wanted, of objects that have none."""
    checksum_mismatches: int = 0
    """Times that bytes were compared with a checksum, and were wrong."""
    hedges: int = 0
    """Second requests for blocks whose first request was late; part of `requests_read`."""
    hedges_won: int = 0
    """Hedges that brought a block before the late request did."""
    throttled: int = 0
    """Answers that asked us to slow down."""
    read_errors: int = 0
    """Reads answered with an error."""
    requests_stuck: int = 0
    """Requests of the kernel that outlived every deadline: a defect of ours, each logged once."""
    workers_replaced: int = 0
    """Worker processes that died and were replaced."""
    names_hidden: int = 0
    """Keys seen in listings that cannot be shown as file names."""
    list_hits: int = 0
    """Name look-ups and listings answered without a request."""

    def restore(self, values: dict[str, int]) -> None:
        """Go on from a snapshot; what it has and we do not is another version's."""
        for name in asdict(self).keys() & values.keys():
            setattr(self, name, values[name])

    def snapshot(self) -> dict[str, int]:
        """A copy, by name."""
        return asdict(self)
