"""The application under test: `python -m tests.bench.application READER JOB`, JOB as JSON.

A child process of its own, so that a hung mount can be given up. Imports come before the clock; the
first open is inside. Prints a JSON result.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from tests.bench.job import Job

READERS: dict[str, tuple[str, str]] = {
    "read": ("tests.bench.files", "cold_read"),
    "random": ("tests.bench.files", "random_reads"),
    "ttfb": ("tests.bench.files", "first_bytes"),
    "list": ("tests.bench.files", "list_names"),
    "small": ("tests.bench.files", "small_files"),
    "mmap": ("tests.bench.loaders", "mmap_load"),
    "second": ("tests.bench.loaders", "second_load"),
    "headers": ("tests.bench.loaders", "read_headers"),
    "torch": ("tests.bench.loaders", "torch_load"),
    "transformers": ("tests.bench.loaders", "from_pretrained"),
    "hinted": ("tests.bench.loaders", "hinted_load"),
    "selective": ("tests.bench.loaders", "selective_load"),
    "advised": ("tests.bench.loaders", "advised_load"),
    "ranks": ("tests.bench.loaders", "ranks_load"),
    "stream": ("tests.bench.loaders", "stream"),
}
"""Module and function: only the loaders import torch."""


def main() -> None:
    """Run one reader and print what it measured."""
    module, function = READERS[sys.argv[1]]
    job = Job(**json.loads(sys.argv[2]))
    reader = getattr(importlib.import_module(module), function)
    # The mount point only: waits until the mount answers, looks nothing up.
    os.stat(Path(job.directory).parent)
    # Some loaders chat on standard output.
    output = os.dup(1)
    os.dup2(2, 1)
    result = reader(job)
    with open(output, "w", encoding="utf-8") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main()
