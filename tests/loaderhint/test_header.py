"""The header parser agrees with safetensors itself, and believes nothing that breaks the format."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from loaderhint.header import (
    DTYPE_BITS,
    HEADER_BYTES_MAX,
    Header,
    HeaderError,
    TensorInfo,
    parse_header,
    read_length,
)

NUMPY_DTYPES = ("bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")
NAME = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]))
METADATA_WRITTEN = st.none() | st.dictionaries(NAME, TEXT, min_size=1)
"""Never empty: without tensors, safetensors 0.8 then writes a file that it cannot read itself."""
SHAPE = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def encode(members: Any, data_size: int = 0) -> bytes:
    """A file with this header, `data_size` zero bytes behind it."""
    text = members if isinstance(members, bytes) else json.dumps(members).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_size)


def parse(file: bytes) -> Header:
    """Parse as a reader does: the length, then the JSON."""
    length = read_length(file[:8])
    return parse_header(file[8 : 8 + length], len(file))


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors_accepts(file: bytes) -> bool:
    """Whether the library itself would load it."""
    try:
        safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


@given(
    st.dictionaries(NAME, st.tuples(st.sampled_from(NUMPY_DTYPES), SHAPE), max_size=6),
    METADATA_WRITTEN,
)
def test_files_of_safetensors(
    specification: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    """What safetensors writes is parsed to the same names, shapes, metadata and bytes."""
    arrays = {
        name: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
        for name, (dtype, shape) in specification.items()
    }
    file = safetensors.numpy.save(arrays, metadata)
    header = parse(file)
    assert {found.name for found in header.tensors} == set(arrays)
    assert header.metadata == (metadata or {})
    for found in header.tensors:
        assert found.shape == arrays[found.name].shape
        assert file[found.start : found.stop] == arrays[found.name].tobytes()
    starts = [found.start for found in header.tensors]
    assert starts == sorted(starts)
    assert header.data_start == 8 + int.from_bytes(file[:8], "little")


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_dtypes_have_the_sizes_of_safetensors(dtype: str) -> None:
    """Every dtype we know is one of safetensors, and of the same size."""
    size = DTYPE_BITS[dtype]  # eight elements of so many bits are so many bytes
    right = encode({"x": tensor(dtype, (8,), (0, size))}, size)
    wrong = encode({"x": tensor(dtype, (8,), (0, size + 1))}, size + 1)
    assert parse(right).tensors[0].dtype == dtype
    assert safetensors_accepts(right)
    assert not safetensors_accepts(wrong)
    with pytest.raises(HeaderError):
        parse(wrong)


DIMENSION = st.integers(-1, 3) | st.sampled_from([2**32, 2**63, 2**64, True, 1.5, "1", None])
OFFSET = st.integers(-1, 16) | st.sampled_from([2**64, False, 4.5, "4", None])
MEMBER = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["U8", "F32", "F4", "F6_E2M3", "f32", "", 7, None]),
        "shape": st.lists(DIMENSION, max_size=2) | st.none(),
        "data_offsets": st.lists(OFFSET, max_size=3) | st.none(),
    },
)
GOOD_MEMBER = st.builds(
    lambda size, start: tensor("U8", (size,), (start, start + size)),
    st.integers(0, 4),
    st.integers(0, 8),
)
METADATA = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", 1, None])) | st.integers()


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), GOOD_MEMBER | MEMBER, max_size=3),
    st.none() | METADATA,
    st.integers(0, 12),
)
def test_accepts_what_safetensors_accepts(
    members: dict[str, Any], metadata: Any, data_size: int
) -> None:
    """Of good and bad headers the parser accepts those that safetensors accepts, and no others."""
    if metadata is not None:
        members = {"__metadata__": metadata, **members}
    file = encode(members, data_size)
    try:
        parse(file)
    except HeaderError:
        assert not safetensors_accepts(file)
    else:
        assert safetensors_accepts(file)


@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_bytes_parse_or_are_refused(text: bytes) -> None:
    """No bytes make the parser fail otherwise than by HeaderError."""
    for candidate in (text, b"{" + text, b'{"a":' + text + b"}"):
        try:
            header = parse_header(candidate, 8 + len(candidate))
        except HeaderError:
            continue
        assert header.data_start == 8 + len(candidate)


VIOLATIONS: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{nope}",
    "an array": b"[]",
    "leading space": b" {}",
    "trailing text": b"{} {}",
    "not UTF-8": b'{"\xff": {}}',
    "UTF-16": "{}".encode("utf-16-le"),
    "half a surrogate pair": (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "half a pair in metadata": b'{"__metadata__":{"a":"\\ud800"}}',
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "a member twice": b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "NaN": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}',
    "a number of 5,000 digits": (
        b'{"a":{"dtype":"U8","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,0]}}'
    ),
    "deep": b'{"a":' * 100_000,
    "a tensor that is a list": b'{"a":[]}',
    "metadata that is a list": b'{"__metadata__":[]}',
    "a product beyond 64 bits": (
        b'{"a":{"dtype":"U8","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}}'
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations(name: str) -> None:
    """Each way to break the format is refused."""
    text = VIOLATIONS[name]
    with pytest.raises(HeaderError):
        parse_header(text, 8 + len(text))


@pytest.mark.parametrize(
    ("offsets", "size"),
    [
        ([(0, 4), (5, 9)], 9),  # a hole
        ([(0, 4), (3, 7)], 7),  # an overlap
        ([(1, 5)], 5),  # a hole at the beginning
        ([(0, 4)], 5),  # bytes that belong to nobody
        ([(0, 4)], 3),  # a file cut short
        ([(4, 0)], 0),  # backwards
    ],
)
def test_tensors_fill_the_file(offsets: list[tuple[int, int]], size: int) -> None:
    """Tensors lie one behind the other and end with the file, or the header is refused."""
    members = {
        f"t{number}": tensor("U8", (abs(stop - start),), (start, stop))
        for number, (start, stop) in enumerate(offsets)
    }
    with pytest.raises(HeaderError):
        parse(encode(members, size))


def test_a_header_by_hand() -> None:
    """Offsets become bytes of the file, padding included, in the order of the file."""
    text = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "b": tensor("BF16", (2, 3), (4, 16)),
            "a": tensor("F32", (), (0, 4)),
            "none": tensor("I64", (0, 7), (16, 16)),
        }
    ).encode()
    text += b" " * 100
    start = 8 + len(text)
    assert parse(encode(text, 16)) == Header(
        start,
        (
            TensorInfo("a", "F32", (), start, start + 4),
            TensorInfo("b", "BF16", (2, 3), start + 4, start + 16),
            TensorInfo("none", "I64", (0, 7), start + 16, start + 16),
        ),
        {"format": "pt"},
    )


@pytest.mark.parametrize("length", [2, 8, HEADER_BYTES_MAX])
def test_lengths(length: int) -> None:
    """The first eight bytes are a little-endian length."""
    assert read_length(length.to_bytes(8, "little")) == length


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\x02" + bytes(6),
        b"\x02" + bytes(8),
        bytes(8),
        b"\x01" + bytes(7),
        (HEADER_BYTES_MAX + 1).to_bytes(8, "little"),
        b"\xff" * 8,
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_bad_lengths(first: bytes) -> None:
    """Lengths that no header has are refused before anything of that size is read."""
    with pytest.raises(HeaderError):
        read_length(first)


def test_the_limit_of_the_json() -> None:
    """A header beyond the limit is refused unparsed."""
    with pytest.raises(HeaderError, match="no header has"):
        parse_header(bytes(HEADER_BYTES_MAX + 1), HEADER_BYTES_MAX + 9)
