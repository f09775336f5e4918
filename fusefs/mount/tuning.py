"""The two kernel knobs that decide between 5 and 800 MiB/s for one reader, set when we may.

`read_ahead_kb` is how much the kernel asks for at once, `max_background` how many of its requests
may be in flight. Both are files below /sys that only root of the host may write. They are written
after FUSE_INIT (its reply resets the first) and before files are opened (each copies it).
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusefs.config import KernelConfig

log = logging.getLogger("fusefs.tuning")


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
