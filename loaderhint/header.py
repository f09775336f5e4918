"""The head of a safetensors file: which tensor lies where.

Pure functions on bytes; nothing here opens a file, and no tensor is ever touched. The one idea: a
header is believed wholly or not at all. It is input from strangers, so whatever breaks the format
raises `HeaderError`, and who asked treats the file as plain bytes.

The format is that of https://github.com/huggingface/safetensors (safetensors/src/tensor.rs): eight
bytes, little-endian, with the length of the JSON that follows; then the data, without a hole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEADER_BYTES_MAX = 100_000_000
"""MAX_HEADER_SIZE of safetensors: a longer one is refused by every loader."""

LENGTH_BYTES = 8
"""Size of the length that a file begins with."""

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the names of safetensors 0.8."""

_METADATA = "__metadata__"
_WORD_MAX = 2**64 - 1
"""Numbers of a header are `usize` in safetensors, where a product beyond it is an error."""


class HeaderError(ValueError):
    """The bytes are not the header of a safetensors file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `[start, stop)` are bytes of the file, row-major and little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header. `tensors` are in the order of the file and fill it from `data_start` on."""

    data_start: int
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]


def read_length(first8: bytes) -> int:
    """The length in bytes of the JSON behind the first eight bytes of a file.

    Raises `HeaderError` if there are not eight, or no header can have that length.
    """
    if len(first8) != LENGTH_BYTES:
        raise HeaderError(f"a safetensors file begins with {LENGTH_BYTES} bytes, not {len(first8)}")
    length = int.from_bytes(first8, "little")
    if not len("{}") <= length <= HEADER_BYTES_MAX:
        raise HeaderError(f"no header has {length} bytes")
    return length


def parse_header(json_bytes: bytes, file_size: int) -> Header:
    """The header whose JSON is `json_bytes`, in a file of `file_size` bytes.

    Raises `HeaderError` on any violation of the format, tensors that do not fill the file included.
    """
    if len(json_bytes) > HEADER_BYTES_MAX:
        raise HeaderError(f"no header has {len(json_bytes)} bytes")
    members = _parse_json(json_bytes)
    metadata = _parse_metadata(members.pop(_METADATA, None))
    data_start = LENGTH_BYTES + len(json_bytes)
    tensors = [_parse_tensor(name, value, data_start) for name, value in members.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    filled = data_start
    for tensor in tensors:
        if tensor.start != filled:
            raise HeaderError(f"there is a hole or an overlap before tensor {tensor.name!r}")
        filled = tensor.stop
    if filled != file_size:
        raise HeaderError(f"the tensors end at byte {filled}, the file at {file_size}")
    return Header(data_start, tuple(tensors), metadata)


def _parse_json(json_bytes: bytes) -> dict[str, Any]:
    if not json_bytes.startswith(b"{"):
        raise HeaderError("a header begins with '{'")
    try:
        # Decoded here: json would guess UTF-16 or UTF-32 where the format says UTF-8.
        members = json.loads(
            json_bytes.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
        )
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON: {type(error).__name__}") from error
    assert isinstance(members, dict)  # it begins with "{"
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise HeaderError("the header names something twice")
    return members


def _refuse_constant(text: str) -> None:
    raise HeaderError(f"{text} is not JSON")


def _parse_metadata(value: Any) -> dict[str, str]:
    if value is None:  # absent, or null, which safetensors takes for absent
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise HeaderError(f"{_METADATA} does not map strings to strings")
    for key, text in value.items():
        _check_text(key)
        _check_text(text)
    return value


def _parse_tensor(name: str, value: Any, data_start: int) -> TensorInfo:
    _check_text(name)
    if not isinstance(value, dict):
        raise HeaderError(f"tensor {name!r} is not described by an object")
    dtype = value.get("dtype")
    shape = _parse_numbers(name, "shape", value.get("shape"))
    offsets = _parse_numbers(name, "data_offsets", value.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"tensor {name!r} has an unknown dtype")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {name!r} has data_offsets that are no range")
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
        if bits > _WORD_MAX:
            raise HeaderError(f"tensor {name!r} is larger than any file")
    start, stop = offsets
    if bits != (stop - start) * 8:
        raise HeaderError(f"tensor {name!r} has {stop - start} bytes, its shape {bits} bits")
    return TensorInfo(name, dtype, shape, data_start + start, data_start + stop)


def _parse_numbers(name: str, what: str, value: Any) -> tuple[int, ...]:
    """A list of natural numbers. `type`, since True is an int to isinstance."""
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise HeaderError(f"tensor {name!r} has no list of whole numbers as {what}")
    if any(not 0 <= number <= _WORD_MAX for number in value):
        raise HeaderError(f"tensor {name!r} has a number out of range in {what}")
    return tuple(value)


def _check_text(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HeaderError("the header holds text that is not Unicode") from error
