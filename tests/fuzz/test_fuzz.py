"""Every target with hostile input, in short (`python -m tests.fuzz` runs them for hours)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXAMPLES = 150
EXAMPLES_SLOW = 25
SLOW = frozenset({"hints", "verbs", "s3", "gcs", "azure", "redis-wire"})
"""Their inputs need a world or an SDK each: 3 to 10 ms."""

WORDS = [
    b"-1", b"null", b"true", b'"', b"9" * 30, b"9" * 5000, b"[", b"{" * 3, b"\xff", b"\\ud800",
    b"1e999", b"\0", b"..", b"/", b"\n\n", b"NaN", b"{}", b"[]", b"Infinity", b"1.5",
]  # fmt: skip

Edit = tuple[int, int, bytes]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 4096), st.integers(0, 12), st.sampled_from(WORDS) | st.binary(max_size=8)
    ),
    max_size=4,
)
"""Where, how many bytes are taken out there, and what is put in."""

FOUND: dict[str, list[bytes]] = {
    "redis": [
        b'{"size":' + b"[" * 5000,
        b'{"size": -5, "mtime_ns": 0, "etag": "e"}',
        b'{"size": 5, "mtime_ns": 0, "etag": "\\ud800"}',
        b'{"size": 1e400, "chunk_bytes": 4, "chunks": []}',
        b'{"size": 1.0, "chunk_bytes": 4.0, "chunks": ["a"]}',
        b'{"size": 4, "chunk_bytes": 4, "chunks": [{}]}',
    ],
    "index": [b'{"weight_map": {"a": "%s"}}' % (b"\\ud800" * 255), b'{"weight_map": {"a": []}}'],
    "listing": [b"\xff" * 8000],
    "s3": [
        b'\1\0Content-Length: 10\nETag: "e"\n'
        b"Last-Modified: Thu, 01 Jan 99999999999999999999 00:00:00 GMT\n\n",
        b"\3\3\n\n<Error><Code>PermanentRedirect</Code></Error>",
    ],
    "gcs": [
        b"\1\0\n\n" + b"[" * 3000,
        b'\1\0\n\n{"name": 5, "generation": 1, "size": 1, "timeCreated": "2026-01-01T00:00:00Z"}',
        b'\0\0\n\n{"prefixes": [5]}',
    ],
    "azure": [
        b'\1\0ETag: "e"\nContent-Length: 1\n'
        b"Last-Modified: Thu, 01 Jan 99999999999999999999 00:00:00 GMT\n\n",
        b"\2\x09Content-Length: " + b"9" * 5000 + b"\n\n",
    ],
    "source": [
        b"s3/user:hunter2@host://bucket",
        b"redis://h:" + b"9" * 5000 + b"/2?model=a/b",
        b"redis://h:1/" + b"9" * 5000,
    ],
}  # fmt: skip
"""What fuzzing has found once."""


def edited(seed: bytes, edits: list[Edit]) -> bytes:
    """A seed with something taken out and something put in."""
    data = bytearray(seed)
    for place, count, new in edits:
        at = place % (len(data) + 1)
        data[at : at + count] = new
    return bytes(data)


def attack(name: str) -> Callable[[], None]:
    """The test of one target."""
    target = TARGETS[name]
    seeds = list(target.seeds())

    @given(data=st.builds(edited, st.sampled_from(seeds), EDITS) | st.binary(max_size=64))
    @settings(
        max_examples=EXAMPLES_SLOW if name in SLOW else EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def run(data: bytes) -> None:
        target.run(data)

    for seed in (*seeds, *FOUND.get(name, [])):
        run = example(data=seed)(run)
    return run


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_refused_and_breaks_nothing(name: str) -> None:
    """Whatever strangers write: a value within its bounds, or the error that its reader expects."""
    attack(name)()


def test_a_target_sees_what_it_is_there_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that lets the wrong exception out is found within the examples of the suite."""

    def careless(raw: bytes, what: str) -> None:
        json.loads(raw)["size"] + 1

    monkeypatch.setattr("tests.fuzz.targets.Entry.decode", careless)
    with pytest.raises((ValueError, KeyError, TypeError, ExceptionGroup)):
        attack("redis")()
