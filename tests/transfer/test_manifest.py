"""Manifests and journals from a bucket that others write to: sound, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import CorruptData
from fusefs.transfer.manifest import FileRow, decode_journal, decode_manifest, encode_manifest

DIGEST = "0" * 64

HOSTILE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a//b",
    "a/",
    "a\0b",
    "n" * 256,
    ".fusefs/manifest.json",
    "a/.fusefs",
    "\ud800",
]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)

NEARLY = st.fixed_dictionaries(
    {
        "v": st.just(1),
        "files": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(HOSTILE) | st.text(max_size=20) | VALUES,
                    "size": st.integers() | VALUES,
                    "sha256": st.just(DIGEST) | VALUES,
                }
            )
            | VALUES,
            max_size=3,
        ),
        "before": VALUES,
        "remove": st.lists(st.sampled_from(HOSTILE) | VALUES, max_size=2) | VALUES,
    }
)


def manifest(name: str) -> bytes:
    """A manifest of one file."""
    return json.dumps({"v": 1, "files": [{"name": name, "size": 1, "sha256": DIGEST}]}).encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_are_refused(name: str) -> None:
    """A name that leads out of the folder, or that no file can have, makes all of it unsound."""
    with pytest.raises(CorruptData, match="was not written by this version"):
        decode_manifest(manifest(name), "'m'")
    journal = {"v": 1, "files": [], "before": {}, "remove": [name]}
    with pytest.raises(CorruptData, match="was not written by this version"):
        decode_journal(json.dumps(journal).encode(), "'j'")


@given(VALUES | NEARLY)
def test_whatever_is_there_is_sound_or_refused(value: object) -> None:
    """Any JSON is either rows of names that stay below a folder, or CorruptData."""
    for decode in (decode_manifest, lambda data, where: decode_journal(data, where).files):
        try:
            rows = decode(json.dumps(value).encode(), "'m'")
        except CorruptData:
            continue
        for row in rows:
            path = PurePosixPath(row.name)
            assert not path.is_absolute() and ".." not in path.parts
            assert row.size >= 0 and len(row.sha256) == 64


@given(st.binary(max_size=200))
def test_bytes_are_refused(data: bytes) -> None:
    """What is no JSON is refused as well."""
    with pytest.raises(CorruptData):
        decode_manifest(data, "'m'")


def test_what_push_writes_is_sound() -> None:
    """The check lets through what it is for."""
    rows = (FileRow("a/b.safetensors", 5, DIGEST), FileRow("c", 0, DIGEST))
    assert decode_manifest(encode_manifest(rows), "'m'") == rows
