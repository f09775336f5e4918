"""The rule between keys and file names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.tree.names import NAME_BYTES_MAX, name_below, name_of, prefix_of, segment_of

# Everything Python calls text: controls, slashes, lone surrogates of both kinds.
nasty_text = st.text(
    st.one_of(st.sampled_from("./\0aé\udcc3\udca9\ud800\n\\"), st.characters()), max_size=300
)


@given(nasty_text)
def test_shown_segment_survives_the_round_trip(segment: str) -> None:
    """A segment that has a name is found again by exactly that name."""
    name = name_of(segment)
    if name is not None:
        assert segment_of(name) == segment


@given(nasty_text)
def test_names_are_safe(segment: str) -> None:
    """No name is empty, leaves its directory, holds a slash or NUL, or is too long for Linux."""
    name = name_of(segment)
    if name is not None:
        assert name not in {b"", b".", b".."}
        assert not {b"/", b"\0"} & {name[i : i + 1] for i in range(len(name))}
        assert len(name) <= NAME_BYTES_MAX


@given(st.binary(max_size=300))
def test_every_name_a_file_system_can_hold_is_shown(name: bytes) -> None:
    """Every valid POSIX name, UTF-8 or not, is the name of exactly one segment."""
    valid = (
        name not in {b"", b".", b"..", b".fusefs"}
        and not {0, 0x2F} & set(name)
        and len(name) <= 255
    )
    segment = segment_of(name)
    assert (segment is not None) == valid
    if segment is not None:
        assert name_of(segment) == name


@pytest.mark.parametrize(
    "segment",
    ["", ".", "..", "a/b", "a\0b", "x" * 256, "é" * 128, "\ud800", "\udcc3\udca9", ".fusefs"],
)
def test_hidden_segments(segment: str) -> None:
    """Empty, dots, slash, NUL, over 255 bytes, and text without a faithful name are hidden."""
    assert name_of(segment) is None


@pytest.mark.parametrize(
    "segment", ["...", " ", "-rf", "\n", "x" * 255, "é" * 127, "\udcff", "a\\b"]
)
def test_odd_but_shown_segments(segment: str) -> None:
    """What Linux allows is shown, however odd."""
    assert name_of(segment) is not None


@given(nasty_text, nasty_text)
def test_name_below_ignores_what_is_not_below(prefix: str, key: str) -> None:
    """A key that the store gave out of place gets no name."""
    name = name_below(prefix, key)
    if name is not None:
        segment = segment_of(name)
        assert segment is not None
        assert key in {prefix + segment, prefix + segment + "/"}


@pytest.mark.parametrize(
    ("key", "prefix"), [("a", ""), ("a/", ""), ("a/b", "a/"), ("a/b/", "a/"), ("a//b", "a//")]
)
def test_prefix_of(key: str, prefix: str) -> None:
    """The prefix of a key is the directory that lists it."""
    assert prefix_of(key) == prefix
