"""How the value of a setting is written: its parsers, and the inverse of each.

The one idea: a `Kind` is all that a table of settings needs to know of a sort of value. Nothing
here knows a setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})

Value = bool | int | float | str | None
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one sort of value is written. `parse` raises ValueError, `show` is its inverse.

    `echo` is false where a wrong value may hold a password and no message may repeat it.
    """

    written: str
    parse: Callable[[str], Value]
    show: Callable[[Any], str] = str
    echo: bool = True


def parse_size(text: str) -> int:
    """Bytes from "512M", "2GiB" or "1073741824"; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def show_size(size: int) -> str:
    """The shortest text that `parse_size` reads back as exactly `size`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def _within(value: T, low: T, high: T) -> T:
    if not low <= value <= high:  # type: ignore[operator] # T is int or float
        raise ValueError(value)
    return value


def _parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _parse_flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _parse_octal(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text, re.ASCII):
        raise ValueError(text)
    return _within(int(text, 8), 0, 0o777)


def _parse_block(text: str) -> int:
    size = _within(parse_size(text), 64 * KIB, 16 * MIB)
    if size & (size - 1):
        raise ValueError(text)
    return size


def _parse_url(text: str) -> str:
    parts = urlsplit(text)
    plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    if not plain or parts.query or parts.fragment or not (parts.port is None or parts.port):
        raise ValueError("no plain http URL")
    return text


def _parse_text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(text)
    return text


def _parse_file(text: str) -> str:
    # The daemon's folder is "/": a relative name would lead somewhere else.
    if not _parse_text(text).startswith("/"):
        raise ValueError(text)
    return text


def size(low: int, high: int) -> Kind:
    """A number of bytes within bounds."""
    written = f"a size from {show_size(low)} to {show_size(high)}, like 512M or 2GiB"
    return Kind(written, lambda text: _within(parse_size(text), low, high), show_size)


def count(low: int, high: int) -> Kind:
    """A whole number within bounds."""
    written = f"a whole number from {low} to {high}"
    return Kind(written, lambda text: _within(_parse_count(text), low, high))


def seconds(low: float, high: float) -> Kind:
    """A duration within bounds."""
    written = f"a number of seconds from {low:g} to {high:g}"
    return Kind(
        written, lambda text: _within(float(text), low, high), lambda value: f"{value:.17g}"
    )


def choice(*choices: str) -> Kind:
    """One word of several."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return Kind(f"one of {', '.join(choices)}", parse)


FLAG = Kind("true or false", _parse_flag, lambda value: str(value).lower())
OCTAL = Kind("an octal mode from 0 to 777", _parse_octal, lambda value: f"{value:03o}")
BLOCK = Kind("a power of two from 64K to 16M", _parse_block, show_size)
URL = Kind("a URL like https://host:port, without user or password", _parse_url, echo=False)
TEXT = Kind("a text on one line", _parse_text)
FILE = Kind("an absolute path", _parse_file)
ID = count(0, 2**32 - 2)
"""2**32 - 1 means "no user" to the kernel."""
