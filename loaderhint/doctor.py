"""Why loading from a path is as fast as it is: the mount, the way to its daemon, and advice.

Only looks; nothing is fetched and nothing changed. The one idea: each piece of advice names the
observation that it follows from, and none is given where nothing is wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from loaderhint import channel
from loaderhint.files import expand_paths, open_files
from loaderhint.hints import open_client
from loaderhint.memory import cached_bytes

_READ_AHEAD = "/sys/class/bdi/{major}:{minor}/read_ahead_kb"

_READ_AHEAD_SMALL_KB = 512
"""With the kernel's 128 KiB, mmap reads a tenth of what it does with 1 MiB and more."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was seen at a path; None where it could not be seen."""

    path: str
    filesystem: str | None
    channel: str
    features: tuple[str, ...]
    round_trip_ms: float | None
    server: str | None
    read_ahead_kb: int | None
    pushes: bool | None
    files: int
    size_bytes: int
    cached_bytes: int

    def as_json(self) -> dict[str, Any]:
        """All of it, the advice included."""
        return asdict(self) | {"advice": list(advice(self))}


def diagnose(path: str) -> Diagnosis:
    """Look at a file or a folder of shards. Raises OSError if it cannot be opened."""
    device = os.stat(path).st_dev
    filesystem = channel.filesystem_of(device)
    found, round_trip_ms, stats = "none", None, None
    features: tuple[str, ...] = ()
    with open_files([one for one in expand_paths(path) if os.path.isfile(one)]) as files:
        if filesystem == channel.FSTYPE:
            stats = channel.ask(path, "stats")
            found = "xattr" if channel.ask(path, "progress") is not None else "none"
            client = open_client(files[0]) if files else None
            if client is not None:
                found, features = "socket", tuple(sorted(client.features))
                began = time.perf_counter()
                stats = client.stats() or stats
                round_trip_ms = round((time.perf_counter() - began) * 1000, 3)
                client.close()
        return Diagnosis(
            path,
            filesystem,
            found,
            features,
            round_trip_ms,
            _text(stats, "version"),
            _read_ahead_kb(device),
            _pushes(stats),
            len(files),
            sum(file.size_bytes for file in files),
            sum(cached_bytes(file.fd) for file in files),
        )


def advice(seen: Diagnosis) -> Iterator[str]:
    """What to do, a sentence each."""
    if seen.filesystem != channel.FSTYPE:
        yield (
            f"{seen.path} is on {seen.filesystem or 'an unknown file system'}, not on a mount of"
            " fusefs: hints do nothing here, loaderhint.torch reads with many threads."
        )
        return
    if seen.channel == "none":
        yield "The daemon takes no hints; update fusefs on the host."
    elif seen.channel == "xattr":
        yield (
            "Only whole files can be hinted, for the socket is not reached; update fusefs on the"
            " host, and let the container see the mount itself, not a copy of its files."
        )
    elif "slots" not in seen.features:
        yield (
            "The daemon does not share its memory with this user; tensors come through the page"
            " cache, with one copy more."
        )
    if (seen.read_ahead_kb or _READ_AHEAD_SMALL_KB) < _READ_AHEAD_SMALL_KB and not seen.pushes:
        yield (
            f"The kernel reads ahead {seen.read_ahead_kb} KiB only and nothing is pushed: mount as"
            " root, or give hints; for vLLM add --safetensors-load-strategy prefetch."
        )


def _read_ahead_kb(device: int) -> int | None:
    name = _READ_AHEAD.format(major=os.major(device), minor=os.minor(device))
    try:
        with open(name) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _pushes(stats: dict[str, Any] | None) -> bool | None:
    """Whether the daemon pushes pages, by the pid of the process that does."""
    pids = (stats or {}).get("pids")
    return bool(pids.get("pusher")) if isinstance(pids, dict) else None


def _text(stats: dict[str, Any] | None, key: str) -> str | None:
    value = (stats or {}).get(key)
    return value if isinstance(value, str) else None
