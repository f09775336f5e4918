"""Which shard a loader will want after this one.

A model's shards are named by its `*.safetensors.index.json`, or by a common name with numbers
(`model-00001-of-00004.safetensors`). Natural order (2 before 10) is what loaders sort by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBERED = re.compile(r"^(.*?)(\d+)((?:-of-\d+)?\.safetensors|-of-\d+\.(?:bin|gguf|pt))$")
"""Files of other kinds need their "of": numbered ones are parts of data sets as often."""

_DIGITS = re.compile(r"(\d+)")

INDEX_SUFFIX = ".safetensors.index.json"


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `a2` comes before `a10`; total for any string."""
    parts = _DIGITS.split(name)
    return tuple(
        (1, int(part), part) if index % 2 else (0, 0, part) for index, part in enumerate(parts)
    )


def group_of(name: str) -> str | None:
    """The numbered family a shard's name belongs to, or None: `model-#-of-00004.safetensors`."""
    match = _NUMBERED.match(name)
    return f"{match[1]}#{match[3]}" if match else None


def shard_order(name: str, siblings: Iterable[str], indexed: Sequence[str] | None) -> list[str]:
    """The shards of `name`'s model in load order, `name` among them; empty if it has no siblings.

    `indexed` are the files an index names: with it only those count, so that a second copy of the
    weights in the same directory (`consolidated.safetensors`) is left alone.
    """
    names = set(siblings)
    if indexed is not None and name in indexed:
        members = {file for file in indexed if file in names}
    else:
        group = group_of(name)
        if group is None:
            return []
        members = {file for file in names if group_of(file) == group}
    members.add(name)
    return sorted(members, key=natural_key) if len(members) > 1 else []


def shards_after(name: str, order: Sequence[str]) -> list[str]:
    """What follows `name` in `order`; nothing if it is not there."""
    return list(order[order.index(name) + 1 :]) if name in order else []
