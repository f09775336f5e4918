"""The process that fuzzes: `python -m tests.fuzz.child TARGET SECONDS CORPUS FOUND/`.

Its address space is bounded, and fusefs is instrumented as it is imported.
"""

from __future__ import annotations

import importlib
import logging
import resource
import sys
from pathlib import Path

import atheris

ADDRESS_SPACE_BYTES = 3 << 30
"""Libraries and the corpus take one; no input of `LENGTH_MAX` has a use for two more."""

RSS_LIMIT_MIB = 1024
LENGTH_MAX = 8192
ONE_INPUT_S = 20
"""Longer is a finding: what takes milliseconds takes seconds when the machine is busy."""


def main(target: str, seconds: str, corpus: str, found: str) -> None:
    """Fuzz; the process ends with atheris' own status."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    logging.lastResort = None  # what SDKs complain of is theirs
    with atheris.instrument_imports(include=["fusefs", "loaderhint", "tests.fuzz"]):
        targets = importlib.import_module("tests.fuzz.targets")
    options = {
        "max_total_time": seconds,
        "max_len": LENGTH_MAX,
        "timeout": ONE_INPUT_S,
        "rss_limit_mb": RSS_LIMIT_MIB,
        "print_final_stats": 1,
        "artifact_prefix": found,
        "close_fd_mask": 0,
    }
    run = targets.TARGETS[target].run

    def kept(data: bytes) -> None:
        """The fuzzer keeps what was found, unless its own alarm ends it first."""
        try:
            run(data)
        except BaseException:
            (Path(found) / "found").write_bytes(data)
            raise

    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), corpus]
    atheris.Setup(arguments, kept)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
