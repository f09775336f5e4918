"""The log: standard logging to stderr, a file or syslog, and the last warnings for `status`.

The one idea: a log file becomes this process's stderr. So the processes it starts log there without
the right to open it, and what Python says of a crash stands there as well.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import sys
from collections import deque

from fusefs.errors import ConfigError

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
    """Set up the `fusefs` logger of this process; returns the handler that keeps warnings.

    Raises ConfigError if `file` cannot be written to.
    """
    root = logging.getLogger("fusefs")
    root.setLevel(level.upper())
    root.propagate = False
    recent = RecentWarnings()
    recent.addFilter(_print_plainly)
    root.handlers = [recent]
    target = _target(file, foreground)
    if target is not None:
        target.addFilter(_print_plainly)
        target.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(target)
    return recent


def check_log_file(file: str | None) -> None:
    """Return if the log can go there. Raises ConfigError with one sentence."""
    if file is not None:
        os.close(_open_log(file))


def _target(file: str | None, foreground: bool) -> logging.Handler | None:
    if file is not None:
        _become_stderr(file)
    if foreground or file is not None:
        return logging.StreamHandler(sys.stderr)
    if os.path.exists(_SYSLOG_SOCKET):
        return logging.handlers.SysLogHandler(_SYSLOG_SOCKET)
    return None


def _print_plainly(record: logging.LogRecord) -> bool:
    """Escape what no terminal should obey: a key with a newline in it must not forge a line."""
    text = record.getMessage()
    if not text.isprintable():
        record.msg = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        record.args = ()
    return True


def _become_stderr(file: str) -> None:
    fd = _open_log(file)
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)


def _open_log(file: str) -> int:
    """Open the log: made for its owner alone, and never through a link. Raises ConfigError.

    A log names buckets and keys, and somebody who may write to its folder must not have us write
    to a file of ours instead.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(file, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(
                f"log.file {file} is a symbolic link: name the file it leads to"
            ) from error
        raise ConfigError(f"log.file {file} cannot be written: {error.strerror}") from error
