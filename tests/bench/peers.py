"""The peers: their variants, which of them is best for what, and their command lines.

Each peer has variants that were tried, and names the best one per kind of scenario, so that anybody
can look for a better one. One idea: a peer that is not tuned is no peer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache

from tests.bench.content import BUCKET
from tests.bench.origin import CA_VARIABLE

S3FS = "s3fs"
RCLONE = "rclone"
PEERS = (S3FS, RCLONE)

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

BEST: dict[str, dict[str, str]] = {
    S3FS: {
        "read": "32x5",
        "mmap": "24x5-fuse",
        "random": "16x5",
        "head": "default",
        "names": "default",
    },
    RCLONE: {"read": "full", "mmap": "full", "random": "full", "head": "off", "names": "full"},
}
"""The fastest variant per kind of scenario.

Tried on 2 cores, 80 MiB/s and 25 ms, GB/s beside a raw ceiling of 1.6. s3fs 1.90, read: default
0.22, 16x5 0.44, 32x5 0.45, 64x5 and 128x5 0.43, 32x10 0.38, 64x10 0.34, with use_cache 0.41, +ra
0.36; mmap: 32x5 0.21-0.34, 24x5-fuse 0.25-0.39, 16x5 0.20-0.27. rclone 1.60 (one stream): 0.06-0.08
in every mode, and mmap in mode off does not end.

The rest on a busier machine, rclone 1.75. random (400 MiB file), MB/s and bytes fetched per byte
read: s3fs default 25 and 6.0, 16x5 34 and 6.3, 32x5 30, 8x10 31; rclone full 35 and 7.2, full-16x4
35 and 16, full-32x4 17 and 27, mode off 4 in every variant. head (first byte, headers): s3fs the
same within the noise, default fetches least; rclone off 94 ms and 3.5 MiB per header, full 114 ms
and the whole shard, with streams 136-257 ms. names (small files): no difference cold, warm only
mode full asks the origin for nothing.
"""
BEST_STREAMS = BEST[RCLONE] | {"read": "off-16x4", "mmap": "full-32x4"}
"""The same for an rclone with parallel streams (1.75).

read: off-16x4 and off-64x4 0.55, off-32x4 0.47-0.56, off-32x8 0.50, buffer-size no difference,
full-32x4 0.40, full-16x4 0.37. mmap: full-32x4 and full-32x2 0.35, full-16x4-ra0 0.33,
full-16x4 0.23. With +ra all are slower, and mode off takes minutes (0.007, 100 times the bytes):
the kernel's readahead comes out of order, and each step back throws its streams away; mmap in mode
off is not done after a minute without it either.
"""


def variants(name: str, program: str | None) -> Mapping[str, tuple[str, ...]]:
    """Return what there is to choose from: variant to options; {} if it is not installed."""
    if program is None:
        return {}
    if name == S3FS:
        return S3FS_VARIANTS
    return RCLONE_VARIANTS | (RCLONE_STREAM_VARIANTS if _has_streams(program) else {})


def best(name: str, tuned_for: str, program: str) -> str:
    """Return the variant that is best for a kind of scenario."""
    if name == RCLONE and _has_streams(program):
        return BEST_STREAMS[tuned_for]
    return BEST[name][tuned_for]


def s3fs_command(program: str, endpoint: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line; "{mountpoint}" and "{scratch}" are still to be filled in."""
    options = (
        "ro",
        f"url={endpoint}",
        "use_path_request_style",
        # Where it keeps what it has loaded: memory, not a disk.
        "tmpdir={scratch}",
        # Keeps the pages over open(), as a shared model directory wants.
        "kernel_cache",
        *extra,
    )
    return (program, BUCKET, "{mountpoint}", "-f", "-o", ",".join(options))


def rclone_command(program: str, endpoint: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line; "{mountpoint}" and "{scratch}" are still to be filled in."""
    return (
        program,
        "mount",
        f":s3:{BUCKET}",
        "{mountpoint}",
        "--config=",
        "--read-only",
        "--s3-provider=Other",
        "--s3-env-auth",
        "--s3-force-path-style",
        f"--s3-endpoint={endpoint}",
        # Without these a HEAD per file.
        "--s3-no-head-object",
        "--use-server-modtime",
        "--no-checksum",
        "--cache-dir={scratch}/cache",
        "--transfers=32",
        *extra,
    )


def environment_of(name: str, origin: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a contestant: the origin's, in the names that it knows."""
    environment = dict(origin)
    authority = environment.get(CA_VARIABLE)
    if name == S3FS:
        environment["AWSACCESSKEYID"] = origin["AWS_ACCESS_KEY_ID"]
        environment["AWSSECRETACCESSKEY"] = origin["AWS_SECRET_ACCESS_KEY"]
        if authority:
            environment["CURL_CA_BUNDLE"] = authority
    if name == RCLONE and authority:
        # What Go reads; rclone 1.60 refuses to start where the SDKs' own variable is set.
        del environment[CA_VARIABLE]
        environment["SSL_CERT_FILE"] = authority
    return environment


@cache
def _has_streams(rclone: str) -> bool:
    told = subprocess.run([rclone, "mount", "--help"], capture_output=True, text=True, check=True)
    return "--vfs-read-chunk-streams" in told.stdout
