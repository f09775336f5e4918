"""The two kernel knobs that decide between 5 and 800 MiB/s for one reader, set when we may.

`read_ahead_kb` is how much the kernel asks for at once, `max_background` how many of its requests
may be in flight. Both are files below /sys that only root of the host may write. They are written
after FUSE_INIT (its reply resets the first) and before files are opened: each file copies the first
when it is opened, so it can be written anew for a file of another kind.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusefs.config import KernelConfig
from fusefs.policy.kinds import Kind

log = logging.getLogger("fusefs.tuning")

HEAD_READ_AHEAD_KB = 1024
"""For files of which often only the head is wanted: a page fault there brings one block, and
requests are still as large as the kernel makes them."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One kernel setting: what we want, what it is, whether it is as wanted, else why not."""

    wanted: int
    actual: int | None
    set: bool
    why: str | None


def tune(config: KernelConfig, device: str, sys: Path = Path("/sys")) -> dict[str, Knob]:
    """Set both knobs of the mount `device` ("major:minor") and read back what is in force."""
    connection = sys / "fs/fuse/connections" / device.partition(":")[2]
    background = config.max_background
    knobs = {
        "read_ahead_kb": _set(sys / "class/bdi" / device / "read_ahead_kb", config.read_ahead_kb),
        "max_background": _set(connection / "max_background", background),
    }
    # Linux's own ratio (FUSE_DEFAULT_CONGESTION_THRESHOLD is 3/4 of max_background).
    _set(connection / "congestion_threshold", background * 3 // 4)
    for name, knob in knobs.items():
        if not knob.set:
            log.warning(
                "%s stays at %s instead of %d: %s; one reader gets much less than the link carries",
                name, knob.actual, knob.wanted, knob.why,
            )  # fmt: skip
    return knobs


def may_abort(device: str, sys: Path = Path("/sys")) -> bool:
    """Whether the keeper could end this connection if it locked up."""
    return os.access(sys / "fs/fuse/connections" / device.partition(":")[2] / "abort", os.W_OK)


def why_not_push(config: KernelConfig, device: str) -> str | None:
    """What keeps us from pushing pages, if anything: a push can lock up with a READ."""
    if not config.push:
        return "kernel.push is off"
    if not may_abort(device):
        return "/sys/fs/fuse/connections is not writable: mount fusectl there"
    return None


class ReadAhead:
    """The kernel's readahead window, by kind of file.

    The mutable state of ReadAhead is `_actual`, what the next file to be opened gets.
    """

    def __init__(self, config: KernelConfig, sys: Path = Path("/sys")) -> None:
        self._wanted = config.read_ahead_kb
        self._sys = sys
        self._file: Path | None = None
        self._actual = 0

    def begin(self, device: str) -> None:
        """The knob of the mount `device` is known, and may be set."""
        self._file = self._sys / "class/bdi" / device / "read_ahead_kb"
        self._actual = self._wanted

    def opening(self, kind: Kind) -> None:
        """A file of this kind is opened, and the reply is next.

        Should two files of different kinds be opened in the same moment, one may get the other's
        window: that costs speed, or a megabyte.
        """
        wants_little = kind in (Kind.SHARD, Kind.GGUF)
        wanted = min(HEAD_READ_AHEAD_KB, self._wanted) if wants_little else self._wanted
        if self._file is None or wanted == self._actual:
            return
        knob = _set(self._file, wanted)
        self._actual = wanted
        if not knob.set:
            log.warning(
                "read_ahead_kb stays at %s instead of %d: %s", knob.actual, wanted, knob.why
            )
            self._file = None


def as_status(knobs: dict[str, Knob]) -> dict[str, Any]:
    """For the status answer."""
    return {name: asdict(knob) for name, knob in knobs.items()}


def _set(file: Path, wanted: int) -> Knob:
    why = None
    try:
        file.write_text(str(wanted))
    except OSError as error:
        why = f"{file}: {error.strerror}"
    actual = _read(file)
    if why is None and actual != wanted:
        why = f"the kernel keeps {actual}"
    return Knob(wanted, actual, actual == wanted, None if actual == wanted else why)


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
