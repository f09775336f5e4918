"""The three CRCs that stores keep of objects: computing them, and joining those of neighbours.

Only CRCs are of use to a mount: blocks arrive out of order and are recycled, and the CRC of a whole
follows from those of its parts and their lengths. A SHA-256 would need all bytes in order. The one
idea: each is a pair of functions of a library that has both in C, imported on first use, since most
mounts compute none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from fusefs.errors import ConfigError

CRC32, CRC32C, CRC64NVME = "crc32", "crc32c", "crc64nvme"

_COMPUTING: dict[str, tuple[tuple[str, str], ...]] = {
    # 0.02 s of CPU for each GB, and 0.25 without isal; awscrt's own crc32 takes 0.3.
    CRC32: (("isal.isal_zlib", "crc32"), ("zlib", "crc32")),
    CRC32C: (("awscrt.checksums", "crc32c"),),
    CRC64NVME: (("awscrt.checksums", "crc64nvme"),),
}
"""Where to find each, the best first: module and function."""

_COMBINING = "awscrt.checksums"

SIZES = {CRC32: 4, CRC32C: 4, CRC64NVME: 8}
"""Bytes of a value."""


@dataclass(frozen=True, slots=True)
class Crc:
    """One kind of CRC. `size_bytes` is that of a value.

    `compute(data)` is the CRC of bytes; `combine(a, b, size_b)` that of two neighbours, of which
    the second has `size_b` bytes.
    """

    name: str
    size_bytes: int
    compute: Callable[[memoryview], int]
    combine: Callable[[int, int, int], int]

    def join(self, parts: Iterable[tuple[int, int]]) -> int:
        """The CRC of neighbours, given as (size in bytes, CRC), in their order."""
        joined = 0  # that of no bytes
        for size, value in parts:
            joined = self.combine(joined, value, size)
        return joined


def find_crc(name: str) -> Crc:
    """The CRC of this name. Raises `ConfigError` if its library is not installed, KeyError."""
    combine = getattr(_load(_COMBINING), f"combine_{name}")
    return Crc(
        name, SIZES[name], find_computing(name), cast(Callable[[int, int, int], int], combine)
    )


def find_computing(name: str) -> Callable[[memoryview], int]:
    """`Crc.compute` alone: for CRC32 there always is one. Raises like `find_crc`."""
    *better, last = _COMPUTING[name]
    for module, function in better:
        with suppress(ConfigError):
            return cast(Callable[[memoryview], int], getattr(_load(module), function))
    return cast(Callable[[memoryview], int], getattr(_load(last[0]), last[1]))


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"checksums need a package that is not installed ({error.name}):"
            " pip install 'fusefs[checksums]', or set engine.checksums to off"
        ) from error
