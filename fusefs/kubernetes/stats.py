"""How a published volume is: sizes out of its daemon's shared memory, and what is wrong with it.

Never statfs, which would wait for a daemon that is away, and no question to anybody: the daemon
writes what it counts into the estate's memory once a second (`fusefs.mount.vitals`), and we hold
that memory. It knows the sizes of what was looked at; so used and total are what of the volume is
known, and available is 0, since nobody can write.
"""

from __future__ import annotations

from typing import Any

from fusefs.kubernetes.records import Target
from fusefs.kubernetes.sources import SourceMount, Sources
from fusefs.kubernetes.vitals import counters_of
from fusefs.kubernetes.wire import csi

_BYTES, _INODES = 1, 2


def volume_stats(sources: Sources, target: Target) -> Any:
    """The answer to NodeGetVolumeStats for a target that is ours."""
    answer = csi("NodeGetVolumeStatsResponse")()
    mount = sources.find(target.key)
    counters = {} if mount is None or mount.estate is None else counters_of(mount.estate)
    trouble = _trouble(mount)
    for unit, name in ((_BYTES, "known_bytes"), (_INODES, "known_objects")):
        known = counters.get(name, 0)
        answer.usage.add(available=0, total=known, used=known, unit=unit)
    answer.volume_condition.abnormal = bool(trouble)
    answer.volume_condition.message = trouble or "it is served"
    return answer


def _trouble(mount: SourceMount | None) -> str:
    """What is wrong, for people; empty if nothing is."""
    if mount is None:
        return "its connection to the kernel is lost: the next publish mounts it again"
    if not mount.link.is_connected:
        return f"{mount.link.who} is away: readers wait for it"
    if mount.estate is None or not mount.is_alive:
        return "its connection to the kernel was ended"
    return ""
