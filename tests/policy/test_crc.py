"""CRCs: right by their definition, and joined as if the bytes had been summed in one go."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import ConfigError
from fusefs.policy import crc
from fusefs.policy.crc import CRC32, CRC32C, CRC64NVME, find_computing, find_crc

NAMES = (CRC32, CRC32C, CRC64NVME)

POLYNOMIALS = {CRC32: 0xEDB88320, CRC32C: 0x82F63B78, CRC64NVME: 0x9A6C9329AC4BC9B5}
"""Bit-reversed. That of CRC64NVME is Azure's, too."""

CHECKS = {CRC32: 0xCBF43926, CRC32C: 0xE3069283, CRC64NVME: 0xAE8B14860A799888}
"""Of the bytes "123456789": https://reveng.sourceforge.io/crc-catalogue/all.htm"""


def by_definition(name: str, data: bytes) -> int:
    """A CRC bit by bit: begins with ones, reversed, ends inverted."""
    ones = (1 << find_crc(name).size_bytes * 8) - 1
    value = ones
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIALS[name] if value & 1 else 0)
    return value ^ ones


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_agrees(name: str) -> None:
    """Each CRC has the check value that the catalogue of CRCs gives it."""
    assert find_crc(name).compute(memoryview(b"123456789")) == CHECKS[name]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=300))
def test_each_is_what_its_definition_says(name: str, data: bytes) -> None:
    """The library computes the polynomial's CRC, of views that may be written to as well."""
    want = by_definition(name, data)
    assert find_crc(name).compute(memoryview(data)) == want
    assert find_crc(name).compute(memoryview(bytearray(data))) == want


@pytest.mark.parametrize("name", NAMES)
@given(pieces=st.lists(st.binary(max_size=5000), max_size=12))
def test_joined_pieces_have_the_crc_of_the_whole(name: str, pieces: list[bytes]) -> None:
    """However bytes are cut, empty pieces included, joining gives the CRC of them all."""
    kind = find_crc(name)
    parts = [(len(piece), kind.compute(memoryview(piece))) for piece in pieces]
    assert kind.join(parts) == kind.compute(memoryview(b"".join(pieces)))


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_zlib_agrees(first: bytes, second: bytes) -> None:
    """A third party: the standard library's CRC32 of the whole."""
    kind = find_crc(CRC32)
    parts = [(len(data), kind.compute(memoryview(data))) for data in (first, second)]
    assert kind.join(parts) == zlib.crc32(first + second)


@given(st.binary(min_size=1, max_size=5000), st.data())
def test_a_flipped_bit_shows(data: bytes, draw: st.DataObject) -> None:
    """No CRC overlooks one wrong bit."""
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    wrong = bytearray(data)
    wrong[bit // 8] ^= 1 << bit % 8
    for name in NAMES:
        kind = find_crc(name)
        assert kind.compute(memoryview(data)) != kind.compute(memoryview(wrong))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants checksums without their package is told what to install."""
    monkeypatch.setitem(crc._COMPUTING, CRC32C, (("no_such_package", "crc32c"),))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'fusefs\[checksums\]'"):
        find_crc(CRC32C)


def test_crc32_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Push notes CRC32s wherever it runs: without the faster library zlib computes them."""
    _, spare = crc._COMPUTING[CRC32]
    monkeypatch.setitem(crc._COMPUTING, CRC32, (("no_such_package", "crc32"), spare))
    assert find_computing(CRC32) is zlib.crc32
