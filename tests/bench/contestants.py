"""Who is measured, and with which options: tables, no I/O but finding programs.

Each peer has variants that were tried, and names the best one per scenario; `PEER:VARIANT` on the
command line picks one, `PEER:*` all of them, so that anybody can look for a better one. One idea: a
peer that is not tuned is no peer.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.bench.mounts import MountCommand
from tests.bench.origin import BUCKET

RAW = "raw"
FUSEFS = "fusefs"
S3FS = "s3fs"
RCLONE = "rclone"
PEERS = (S3FS, RCLONE)
NAMES = (RAW, FUSEFS, *PEERS)


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
    """One contestant with one set of options: a raw fetch, or a mount."""

    name: str
    variant: str
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

S3FS_VARIANTS: dict[str, tuple[str, ...]] = {
    # parallel_count x multipart_size (MB): s3fs loads that much at once, then answers reads.
    "default": (),
    "16x5": ("parallel_count=16", "multipart_size=5"),
    "32x5": ("parallel_count=32", "multipart_size=5"),
    "64x5": ("parallel_count=64", "multipart_size=5"),
    "128x5": ("parallel_count=128", "multipart_size=5"),
    "32x10": ("parallel_count=32", "multipart_size=10"),
    "64x10": ("parallel_count=64", "multipart_size=10"),
    "8x10": ("parallel_count=8", "multipart_size=10"),
    "24x5": ("parallel_count=24", "multipart_size=5"),
    "24x5-fuse": ("parallel_count=24", "multipart_size=5", "max_background=64", "splice_read"),
    "32x5-cache": ("parallel_count=32", "multipart_size=5", "use_cache={scratch}/cache"),
    "64x10-cache": ("parallel_count=64", "multipart_size=10", "use_cache={scratch}/cache"),
}

RCLONE_VARIANTS: dict[str, tuple[str, ...]] = {
    # What every version has.
    "off": ("--vfs-cache-mode=off", "--buffer-size=64M"),
    "full": ("--vfs-cache-mode=full", "--buffer-size=64M", "--vfs-read-ahead=512M"),
}
RCLONE_STREAM_VARIANTS: dict[str, tuple[str, ...]] = {
    # Streams x MiB: only in 1.68 and later.
    f"{mode}-{streams}x{chunk}{suffix}": (
        f"--vfs-cache-mode={mode}",
        f"--vfs-read-chunk-streams={streams}",
        f"--vfs-read-chunk-size={chunk}M",
        *extra,
    )
    for mode, streams, chunk, suffix, extra in (
        ("off", 16, 4, "", ()),
        ("off", 16, 4, "-b0", ("--buffer-size=0",)),
        ("off", 16, 4, "-b64", ("--buffer-size=64M",)),
        ("off", 16, 8, "", ()),
        ("off", 32, 2, "", ()),
        ("off", 32, 4, "", ()),
        ("off", 32, 8, "", ()),
        ("off", 64, 4, "", ()),
        ("full", 16, 4, "", ("--vfs-read-ahead=256M",)),
        ("full", 16, 4, "-ra0", ()),
        ("full", 32, 4, "", ("--vfs-read-ahead=512M",)),
        ("full", 32, 2, "", ("--vfs-read-ahead=512M",)),
    )
}

READ_AHEAD_SUFFIX = "+ra"
READ_AHEAD_KB = 4096
"""Any variant with this suffix also gets the readahead window that fusefs sets for itself."""

BEST: dict[str, dict[str, str]] = {
    S3FS: {"read": "32x5", "mmap": "24x5-fuse"},
    RCLONE: {"read": "full", "mmap": "full"},
}
"""The fastest variant per scenario.

Tried on 2 cores, 80 MiB/s and 25 ms, GB/s beside a raw ceiling of 1.6. s3fs 1.90, read: default
0.22, 16x5 0.44, 32x5 0.45, 64x5 and 128x5 0.43, 32x10 0.38, 64x10 0.34, with use_cache 0.41, +ra
0.36; mmap: 32x5 0.21-0.34, 24x5-fuse 0.25-0.39, 16x5 0.20-0.27. rclone 1.60 (one stream): 0.06-0.08
in every mode, and mmap in mode off does not end.
"""
BEST_STREAMS = {"read": "off-16x4", "mmap": "full-32x4"}
"""The same for an rclone with parallel streams (1.75).

read: off-16x4 and off-64x4 0.55, off-32x4 0.47-0.56, off-32x8 0.50, buffer-size no difference,
full-32x4 0.40, full-16x4 0.37. mmap: full-32x4 and full-32x2 0.35, full-16x4-ra0 0.33,
full-16x4 0.23. With +ra all are slower, and mode off takes minutes (0.007, 100 times the bytes):
the kernel's readahead comes out of order, and each step back throws its streams away; mmap in mode
off is not done after a minute without it either.
"""


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


def select(wanted: str, scenario: str, programs: Programs) -> tuple[Contestant, ...]:
    """Return the contestants for `NAME`, `NAME:VARIANT` or `NAME:*`; () if it is not installed.

    `NAME` alone is the variant that is best for `scenario`. Raises `UnknownContestant`.
    """
    name, _, variant = wanted.partition(":")
    if name not in NAMES:
        raise UnknownContestant(f"unknown contestant {name!r}: one of {', '.join(NAMES)}")
    if name == FUSEFS:
        return (Contestant(FUSEFS, "", mount=_fusefs(programs)),)
    variants = _variants(name, programs)
    if not variants:
        return ()
    one = variant or _best(name, scenario, programs)
    chosen = tuple(variants) if variant == "*" else (one,)
    plain = chosen[0].removesuffix(READ_AHEAD_SUFFIX)
    if plain not in variants:
        raise UnknownContestant(f"unknown variant {variant!r} of {name}: {', '.join(variants)}")
    return tuple(_contestant(name, choice, programs) for choice in chosen)


def _variants(name: str, programs: Programs) -> Mapping[str, object]:
    if name == RAW:
        return RAW_VARIANTS
    if name == S3FS:
        return S3FS_VARIANTS if programs.s3fs else {}
    if programs.rclone is None:
        return {}
    return RCLONE_VARIANTS | (RCLONE_STREAM_VARIANTS if _has_streams(programs.rclone) else {})


def _best(name: str, scenario: str, programs: Programs) -> str:
    if name == RAW:
        return next(iter(RAW_VARIANTS))
    if name == RCLONE and programs.rclone and _has_streams(programs.rclone):
        return BEST_STREAMS[scenario]
    return BEST[name][scenario]


def _contestant(name: str, variant: str, programs: Programs) -> Contestant:
    if name == RAW:
        return Contestant(RAW, variant, raw=RAW_VARIANTS[variant])
    plain = variant.removesuffix(READ_AHEAD_SUFFIX)
    command = _s3fs(plain, programs) if name == S3FS else _rclone(plain, programs)
    read_ahead_kb = READ_AHEAD_KB if plain != variant else None
    return Contestant(name, variant, mount=MountCommand(command, read_ahead_kb=read_ahead_kb))


def _fusefs(programs: Programs) -> MountCommand:
    cli = (sys.executable, "-m", "fusefs.cli")
    return MountCommand(
        command=(*cli, "mount", f"s3://{BUCKET}", "{mountpoint}", *programs.fusefs_options),
        umount=(*cli, "umount", "{mountpoint}"),
        returns=True,
    )


def _s3fs(variant: str, programs: Programs) -> tuple[str, ...]:
    assert programs.s3fs is not None
    options = (
        "ro",
        f"url={programs.endpoint}",
        "use_path_request_style",
        # Where it keeps what it has loaded: memory, not a disk.
        "tmpdir={scratch}",
        # Keeps the pages over open(), as a shared model directory wants.
        "kernel_cache",
        *S3FS_VARIANTS[variant],
    )
    return (programs.s3fs, BUCKET, "{mountpoint}", "-f", "-o", ",".join(options))


def _rclone(variant: str, programs: Programs) -> tuple[str, ...]:
    assert programs.rclone is not None
    return (
        programs.rclone,
        "mount",
        f":s3:{BUCKET}",
        "{mountpoint}",
        "--config=",
        "--read-only",
        "--s3-provider=Other",
        "--s3-env-auth",
        "--s3-force-path-style",
        f"--s3-endpoint={programs.endpoint}",
        # Without these a HEAD per file.
        "--s3-no-head-object",
        "--use-server-modtime",
        "--no-checksum",
        "--cache-dir={scratch}/cache",
        "--transfers=32",
        *(RCLONE_VARIANTS | RCLONE_STREAM_VARIANTS)[variant],
    )


def environment_of(origin: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a mount: the origin's, and the same under the names s3fs knows."""
    return {
        **origin,
        "AWSACCESSKEYID": origin["AWS_ACCESS_KEY_ID"],
        "AWSSECRETACCESSKEY": origin["AWS_SECRET_ACCESS_KEY"],
    }


@cache
def _has_streams(rclone: str) -> bool:
    told = subprocess.run([rclone, "mount", "--help"], capture_output=True, text=True, check=True)
    return "--vfs-read-chunk-streams" in told.stdout
