"""What a mount's daemon counts, read from the memory that holders of its estate share."""

from __future__ import annotations

import os
from typing import Any

from fusefs.mount.estate import Estate
from fusefs.mount.vitals import VITALS_BYTES, Vitals


def vitals_of(estate: Estate) -> Vitals:
    """A copy of the vitals of a mount.

    Read, not mapped: the mounter holds that memory as well and could cut it short, and then a look
    at a mapping would kill us.
    """
    return Vitals(
        memoryview(os.pread(estate.memory_fd, VITALS_BYTES, 0).ljust(VITALS_BYTES, b"\0"))
    )


def counters_of(estate: Estate) -> dict[str, int]:
    """The counters of a mount, as far as they are counters: a pod's sidecar may write anything."""
    try:
        found: dict[Any, Any] = vitals_of(estate).counters()
        pairs = list(found.items())
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {name: n for name, n in pairs if isinstance(n, int) and 0 <= n < 1 << 63}
