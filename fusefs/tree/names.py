"""Which keys have a file name, and which name.

Pure: no state, no I/O. A directory is a prefix ("" or "…/"); what lies directly below it is one
*segment* of a key. The one idea: a segment is shown exactly if it turns into a name and back
without loss, so that no two keys share a name and no name leads out of its directory. The others
are hidden: the empty segment ("a//b"), "." and "..", anything with NUL, more than 255 bytes, text
that is neither UTF-8 nor escaped bytes, and the one name that is reserved.
"""

from __future__ import annotations

NAME_BYTES_MAX = 255
"""Linux: NAME_MAX in <linux/limits.h>, which statfs and every C library promise to applications."""

RESERVED = ".fusefs"
"""In every directory: what `fusefs push` notes beside a model. It is ours, so it is not shown, and
not worth a warning either."""

_UNNAMEABLE = frozenset({"", ".", "..", RESERVED})


def name_of(segment: str) -> bytes | None:
    """The file name of a key's segment, or None if it is hidden."""
    if segment in _UNNAMEABLE or "/" in segment or "\0" in segment:
        return None
    try:
        name = segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return None
    if len(name) > NAME_BYTES_MAX:
        return None
    # Escaped bytes that together spell valid UTF-8 come back as other text: two keys, one name.
    if not segment.isascii() and name.decode("utf-8", "surrogateescape") != segment:
        return None
    return name


def segment_of(name: bytes) -> str | None:
    """The key's segment that `name` shows, or None if no key can have this name."""
    segment = name.decode("utf-8", "surrogateescape")
    return None if name_of(segment) is None else segment


def name_below(prefix: str, key: str) -> bytes | None:
    """The name of `key` (prefix + segment, with or without a final "/") in the directory `prefix`.

    None if it is hidden, or not directly below `prefix` at all: a store that answers beside the
    question makes no file appear in the wrong place.
    """
    if not key.startswith(prefix):
        return None
    return name_of(key[len(prefix) :].removesuffix("/"))


def is_reserved(prefix: str, key: str) -> bool:
    """Whether `key` (with or without a final "/") has the reserved name in the directory."""
    return key.removesuffix("/") == prefix + RESERVED


def prefix_of(key: str) -> str:
    """The directory that holds this object or prefix: "a/b/c" and "a/b/c/" -> "a/b/", "a" -> ""."""
    head, slash, _ = key.removesuffix("/").rpartition("/")
    return head + slash
