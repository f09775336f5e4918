"""What a mount's daemon counts, read from the memory that holders of its estate share."""

from __future__ import annotations

import os

from fusefs.mount.estate import Estate
from fusefs.mount.vitals import VITALS_BYTES, Vitals


def vitals_of(estate: Estate) -> Vitals:
    """A copy of the vitals of a mount.

    Read, not mapped: the mounter holds that memory as well and could cut it short, and then a look
    at a mapping would kill us.
    """
    return Vitals(memoryview(os.pread(estate.memory_fd, VITALS_BYTES, 0)))
