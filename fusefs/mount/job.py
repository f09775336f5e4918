"""What a keeper is to do, as the command line (or whoever mounts) wrote it into a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """What to serve, and where. `fd` is the file it was read from, for the daemons.

    `owns` says that we mounted; then we unmount as well. After that readers may finish for
    `grace_s`, then the connection is aborted.
    """

    fd: int
    source: str
    mountpoint: str
    allow_other: bool
    grace_s: float
    owns: bool


def read_job(fd: int, owns: bool = True) -> Job:
    """The job in a file, whose position stays: others read it too."""
    job = read_job_dict(fd)
    mount = job["config"]["mount"]
    return Job(fd, job["source"], job["mountpoint"], mount["allow_other"], mount["grace_s"], owns)


def read_job_dict(fd: int) -> dict[str, Any]:
    """All of it: source, mountpoint, config, foreground."""
    job: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return job
