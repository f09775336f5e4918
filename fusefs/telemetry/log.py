"""The log: standard logging to stderr, a file or syslog, and the last warnings for `status`."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections import deque

WARNINGS_KEPT = 20
"""Enough to see what led to a trouble; at most 20 x 300 characters in the 64 KiB status answer."""

_WARNING_CHARACTERS_MAX = 300
_SYSLOG_SOCKET = "/dev/log"
_FORMAT = "%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s"


class RecentWarnings(logging.Handler):
    """Keeps the last warnings, as text.

    The mutable state of RecentWarnings is `lines`. INVARIANT: len(lines) <= WARNINGS_KEPT.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=WARNINGS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record."""
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        self.lines.append(text[:_WARNING_CHARACTERS_MAX])


def configure_log(level: str, file: str | None, foreground: bool) -> RecentWarnings:
    """Set up the `fusefs` logger of this process; returns the handler that keeps warnings."""
    root = logging.getLogger("fusefs")
    root.setLevel(level.upper())
    root.propagate = False
    recent = RecentWarnings()
    root.handlers = [recent]
    target = _target(file, foreground)
    if target is not None:
        target.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(target)
    return recent


def _target(file: str | None, foreground: bool) -> logging.Handler | None:
    if file is not None:
        return logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    if foreground:
        return logging.StreamHandler(sys.stderr)
    if os.path.exists(_SYSLOG_SOCKET):
        return logging.handlers.SysLogHandler(_SYSLOG_SOCKET)
    return None
