"""What processes take from the machine, seen from outside: descriptors, threads, memory.

The one idea: what must not grow by a single one is told apart from what breathes. Connections to
the store, and the threads that hold them, come as they are needed and stay; everything else is the
same after each piece of work.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.memory import pss_bytes

FETCH = "fusefs-fetch"
"""Workers, as ps shows them: they alone have connections to the store."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of a group of processes. `fixed` must come back exactly; the rest has bounds."""

    fixed: dict[str, int]
    """How many processes there are of each name, their descriptors but for connections to a store,
    and the threads of those that are not workers."""
    connections: int
    fetch_threads: int
    bytes: int


def footprint(pids: Sequence[int]) -> Footprint:
    """Look at these processes; those that end meanwhile count for nothing."""
    fixed: Counter[str] = Counter()
    connections = fetch_threads = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            streams = _stream_sockets(pid)
            links = list(_links(pid))
            threads = len(os.listdir(f"/proc/{pid}/task"))
            fixed[f"{name} processes"] += 1
            fixed[f"{name} descriptors"] += sum(link not in streams for link in links)
            connections += sum(link in streams for link in links)
            if name == FETCH:
                fetch_threads += threads
            else:
                fixed[f"{name} threads"] += threads
    return Footprint(dict(fixed), connections, fetch_threads, pss_bytes(pids))


def own_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd")) - 1  # one of them lists them


def slope(values: Sequence[float]) -> float:
    """How much is added from one value to the next, by a line through all of them."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def _links(pid: int) -> list[str]:
    """Where the descriptors lead; read as text, so nothing behind them is touched."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed while we looked
            found.append(os.readlink(entry.path))
    return found


def _stream_sockets(pid: int) -> set[str]:
    """The TCP sockets of its network namespace, as descriptors name them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            found.add(f"socket:[{line.split()[9]}]")
    return found
