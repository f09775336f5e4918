"""Who is measured, and with which options: tables, no I/O but finding programs.

`NAME:VARIANT` on the command line picks a variant, `NAME:*` all of them. One idea: a contestant is
a name, a variant, and one of four ways to get at the bytes: a raw fetch, a mount, a loader that
reads the bucket itself, a plain folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers
from tests.bench.content import BUCKET
from tests.bench.mounts import Knobs, MountCommand
from tests.bench.peers import PEERS, RCLONE, S3FS

RAW = "raw"
FUSEFS = "fusefs"
RUNAI = "runai"
TMPFS = "tmpfs"
MOUNTS = (FUSEFS, *PEERS)
NAMES = (RAW, FUSEFS, *PEERS, RUNAI, TMPFS)
CEILINGS = (RAW, TMPFS)
"""With whom others are compared: the first of them that takes part."""

KERNEL_DEFAULTS = "kernel-defaults"
FUSEFS_VARIANTS: dict[str, Knobs | None] = {
    "": None,
    # What an ordinary user's mount has: only root may change them. They are put back from outside,
    # so that fusefs does what it does for an ordinary user, who cannot be had in a container.
    KERNEL_DEFAULTS: Knobs(read_ahead_kb=128, max_background=12),
}
DEFAULT = (RAW, FUSEFS, f"{FUSEFS}:{KERNEL_DEFAULTS}", *PEERS, RUNAI, TMPFS)
"""Who takes part if nobody is named."""

READ_AHEAD_SUFFIX = "+ra"
READ_AHEAD = Knobs(read_ahead_kb=4096)
"""Any variant of a peer with this suffix also gets the readahead window that fusefs sets."""


class UnknownContestant(Exception):
    """A name on the command line that is in no table; the message lists those that are."""


@dataclass(frozen=True, slots=True)
class RawSetting:
    """The raw fetch: worker processes, threads in each, bytes per range."""

    processes: int
    threads: int
    range_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Contestant:
    """One contestant with one set of options.

    `raw` or `mount` tell how; with neither it is Run:ai's streamer or the folder on tmpfs.
    """

    name: str
    variant: str = ""
    raw: RawSetting | None = None
    mount: MountCommand | None = None

    @property
    def label(self) -> str:
        """How it is told in tables: `s3fs:64x5`."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


RAW_VARIANTS: dict[str, RawSetting] = {
    "1x32": RawSetting(1, 32),
    "2x16": RawSetting(2, 16),
    "2x32": RawSetting(2, 32),
    "4x8": RawSetting(4, 8),
    "4x16": RawSetting(4, 16),
    "4x32": RawSetting(4, 32),
}
"""Processes x threads. The bench tries them all before the first round and keeps the fastest."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What is installed and how fusefs is to be run."""

    endpoint: str
    rclone: str | None
    s3fs: str | None
    fusefs_options: tuple[str, ...] = ()


def find_program(name: str) -> str | None:
    """Return the program beside this Python (a wheel's), else on PATH or among root's, or None."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def has_streamer() -> bool:
    """Whether Run:ai's streamer is installed, with its part for S3."""
    return all(
        importlib.util.find_spec(name)
        for name in ("runai_model_streamer", "runai_model_streamer_s3")
    )


def select(wanted: str, tuned_for: str, programs: Programs) -> tuple[Contestant, ...]:
    """Return the contestants for `NAME`, `NAME:VARIANT` or `NAME:*`; () if it is not installed.

    A peer's `NAME` alone is the variant that is best for `tuned_for`. Raises `UnknownContestant`.
    """
    name, _, variant = wanted.partition(":")
    if name not in NAMES:
        raise UnknownContestant(f"unknown contestant {name!r}: one of {', '.join(NAMES)}")
    variants = _variants(name, programs)
    if not variants:
        return ()
    one = variant or _best(name, tuned_for, programs)
    chosen = tuple(variants) if variant == "*" else (one,)
    plain = chosen[0].removesuffix(READ_AHEAD_SUFFIX if name in PEERS else "")
    if plain not in variants:
        raise UnknownContestant(
            f"unknown variant {variant!r} of {name}: {', '.join(filter(None, variants))}"
        )
    return tuple(_contestant(name, choice, programs) for choice in chosen)


def _variants(name: str, programs: Programs) -> Mapping[str, object]:
    if name == RAW:
        return RAW_VARIANTS
    if name == FUSEFS:
        return FUSEFS_VARIANTS
    if name == RUNAI:
        return {"": None} if has_streamer() else {}
    if name == TMPFS:
        return {"": None}
    return peers.variants(name, _program(name, programs))


def _best(name: str, tuned_for: str, programs: Programs) -> str:
    if name == RAW:
        return next(iter(RAW_VARIANTS))
    program = _program(name, programs)
    return peers.best(name, tuned_for, program) if program else ""


def _contestant(name: str, variant: str, programs: Programs) -> Contestant:
    if name == RAW:
        return Contestant(RAW, variant, raw=RAW_VARIANTS[variant])
    if name == FUSEFS:
        return Contestant(FUSEFS, variant, mount=_fusefs(variant, programs))
    program = _program(name, programs)
    if program is None:
        return Contestant(name)
    plain = variant.removesuffix(READ_AHEAD_SUFFIX)
    options = peers.variants(name, program)[plain]
    command = (peers.s3fs_command if name == S3FS else peers.rclone_command)(
        program, programs.endpoint, options
    )
    knobs = READ_AHEAD if plain != variant else None
    return Contestant(name, variant, mount=MountCommand(command, knobs=knobs))


def _program(name: str, programs: Programs) -> str | None:
    return {S3FS: programs.s3fs, RCLONE: programs.rclone}.get(name)


def _fusefs(variant: str, programs: Programs) -> MountCommand:
    cli = (sys.executable, "-m", "fusefs.cli")
    return MountCommand(
        command=(*cli, "mount", f"s3://{BUCKET}", "{mountpoint}", *programs.fusefs_options),
        umount=(*cli, "umount", "{mountpoint}"),
        returns=True,
        knobs=FUSEFS_VARIANTS[variant],
    )
