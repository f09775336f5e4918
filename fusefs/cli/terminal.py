"""What the commands say, and where: answers on stdout, complaints on stderr, one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from fusefs.cli.report import printable


def complain(sentence: str) -> None:
    """Say on stderr what went wrong, or what a user should know."""
    print(f"fusefs: {printable(sentence)}", file=sys.stderr)


def say(lines: Iterable[str]) -> None:
    """Answer on stdout."""
    for line in lines:
        print(line)
    sys.stdout.flush()
