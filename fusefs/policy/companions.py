"""Which small files come along with the first one that is read of a directory.

A server reads configuration, tokenizer and index one after the other before any weights, each for
a round trip or two. A directory of a model holds a dozen of them; one that holds very many is
something else, and nothing comes along.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusefs.objects import ObjectMeta

MIB = 1 << 20

COMPANION_BYTES_MAX = 8 * MIB
"""Larger files take more than one request anyhow, and one in two of them is not wanted."""

COMPANIONS_MAX = 64
"""Models have 5 to 20 such files; a directory with more than 64 is a data set."""

COMPANIONS_BYTES_MAX = 32 * MIB
"""Two large tokenizers with all that belongs to them."""

_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".yaml", ".yml", ".py")
"""What `transformers` and its kin read: configuration, vocabulary, templates, remote code."""


def is_companion(meta: ObjectMeta) -> bool:
    """Whether this is a small file of the sort that is read before the weights."""
    return 0 < meta.size <= COMPANION_BYTES_MAX and is_companion_name(meta.id.key)


def is_companion_name(name: str) -> bool:
    """Whether a file of this name is of the sort that is read before the weights."""
    return name.lower().endswith(_SUFFIXES)


def companions_of(
    key: str, siblings: Iterable[ObjectMeta], block_size: int, blocks_max: int
) -> list[ObjectMeta]:
    """What comes along when `key` is read, smallest first: at most `blocks_max` blocks of it."""
    found = [meta for meta in siblings if is_companion(meta)]
    if len(found) > COMPANIONS_MAX:
        return []
    chosen = []
    size, blocks = 0, 0
    for meta in sorted(found, key=lambda meta: meta.size):
        size += meta.size
        blocks += -(-meta.size // block_size)
        if size > COMPANIONS_BYTES_MAX or blocks > blocks_max:
            break
        if meta.id.key != key:
            chosen.append(meta)
    return chosen
