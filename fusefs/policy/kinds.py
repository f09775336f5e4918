"""Which kind of file a key is: the one place that knows suffixes and magic numbers.

A suffix is a guess and costs little; what is expensive (fetching a whole file at the first touch of
its data) waits until the file's first bytes confirm it. What they do not confirm is opaque.
"""

from __future__ import annotations

from enum import Enum

MIB = 1 << 20


class Kind(Enum):
    """How a file is read by those who load it."""

    SHARD = "safetensors"
    """A JSON header that says where each tensor lies, then tensors in many streams."""
    GGUF = "gguf"
    """Metadata at the head, read piece by piece in small reads, then all of the data."""
    ARCHIVE = "zip"
    """torch.save: the directory of the zip archive is at the end and is read first."""
    OPAQUE = "opaque"
    """Nothing known: a window grows ahead of whoever reads in order."""


_BY_SUFFIX = {
    ".safetensors": Kind.SHARD,
    ".gguf": Kind.GGUF,
    ".bin": Kind.ARCHIVE,
    ".ckpt": Kind.ARCHIVE,
    ".pt": Kind.ARCHIVE,
    ".pth": Kind.ARCHIVE,
}

MAGIC = {Kind.GGUF: b"GGUF", Kind.ARCHIVE: b"PK\x03\x04"}
"""The first four bytes (ggml docs/gguf.md; APPNOTE.TXT 4.3.7). A shard has none: its header is
parsed. A `.bin` is as often a data set or a legacy pickle, which must not be fetched whole."""

ARCHIVE_TAIL_BYTES = 1 * MIB
"""The directory of an archive takes about 100 bytes for each tensor: 10,000 tensors fit."""

GGUF_HEAD_BYTES_MAX = 16 * MIB
"""A vocabulary of 256,000 tokens with its merges takes 10 MB; who reads on from there, in order,
reads data."""

GGUF_HEAD_WINDOW_BYTES = 4 * MIB
"""How far ahead of a reader of metadata to fetch: tools read it of every file, and nothing else."""


def kind_of(key: str) -> Kind:
    """The kind that the key's suffix promises."""
    _, dot, suffix = key.rpartition(".")
    return _BY_SUFFIX.get((dot + suffix).lower(), Kind.OPAQUE)
