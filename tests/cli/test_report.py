"""How statistics and listings read on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.cli.report import (
    listing_lines,
    listing_rows,
    printable,
    show_bytes,
    show_duration,
    status_lines,
)
from fusefs.objects import ListPage, ObjectId, ObjectMeta

STATS = {
    "v": 1,
    "source": "s3://models/llama/",
    "version": "0.1.0",
    "uptime_s": 3723.4,
    "pids": {"keeper": 10, "daemon": 11, "spawner": 12, "workers": [13, 14], "pusher": 15},
    "counters": {
        "bytes_fetched": 3 << 30,
        "bytes_read": 1536,
        "requests": 7,
        "requests_list": 2,
        "reads": 9,
        "hits": 5,
        "workers_replaced": 1,
    },
    "arena": {"size_bytes": 2 << 30, "block_bytes": 1 << 20, "free": 2000, "ready": 48},
    "page_cache": {"ahead_bytes": 64 << 20, "room_bytes": 3 << 30, "refused": None},
    "fetching": {
        "limit": 32,
        "limit_max": 256,
        "in_flight": 3,
        "range_bytes": 8 << 20,
        "throttled": 1,
    },
    "kernel": {
        "read_ahead_kb": {"wanted": 4096, "actual": 128, "set": False, "why": "permission denied"},
        "max_background": {"wanted": 128, "actual": 128, "set": True, "why": None},
    },
    "warnings": ["warning: slow\x1b[2J"],
}


def test_a_status_reads_well() -> None:
    """Everything a person asks first stands in aligned lines; a knob not set says why."""
    assert list(status_lines("/mnt/models", STATS)) == [
        "/mnt/models",
        "  source      s3://models/llama/",
        "  uptime      1 h 2 min, fusefs 0.1.0",
        "  processes   keeper 10, daemon 11, spawner 12, pusher 15, workers 13 14",
        "  bytes       3.0 GiB fetched, 1.5 KiB read, 0 B pushed, 0 B fetched in vain",
        "  requests    7: 0 for bytes, 2 for listings, 0 for names; 0 retried, 0 failed",
        "  reads       9: 5 hits, 0 joins, 0 misses, 0 errors",
        "  names       0 answered without a request, 0 hidden",
        "  fetching    3 requests in flight, now up to 32 (at most 256) of 8.0 MiB, throttled by"
        " the store",
        "  replaced    1 workers that died",
        "  arena       2.0 GiB in blocks of 1.0 MiB: 2000 free, 0 fetching, 48 ready (0 unread)",
        "  page cache  64.0 MiB pushed ahead of readers, room for 3.0 GiB",
        "  kernel      read_ahead_kb 128 instead of 4096: not set, permission denied",
        "              max_background 128: set",
        "  warnings    warning: slow\\x1b[2J",
    ]


def test_statistics_of_another_version_still_read() -> None:
    """What is missing shows as nothing; nothing fails."""
    lines = list(status_lines("/mnt", {}))
    assert lines[0] == "/mnt"
    assert any("no workers" in line for line in lines)


def test_a_mount_that_may_not_push_says_why() -> None:
    """The reason stands where the figures would."""
    lines = status_lines("/mnt", {"page_cache": {"refused": "kernel.push is off"}})
    assert "  page cache  nothing is pushed: kernel.push is off" in lines


@given(st.text())
def test_no_name_commands_a_terminal(text: str) -> None:
    """What is printed is one line of printable characters, whatever a key holds."""
    shown = printable(text)
    assert shown.isprintable()
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 << 20, "150 MiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_bytes_read_as_people_say_them(size: int, shown: str) -> None:
    """Sizes have the unit that leaves few digits."""
    assert show_bytes(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (65, "1 min 5 s"), (7260, "2 h 1 min"), (273600, "3 d 4 h")],
)
def test_durations_read_as_people_say_them(seconds: float, shown: str) -> None:
    """Durations have their two largest units."""
    assert show_duration(seconds) == shown


def test_a_listing_is_one_sorted_table() -> None:
    """Directories end in "/", files have size and time, markers of the directory itself go."""

    def meta(key: str, size: int) -> ObjectMeta:
        return ObjectMeta(ObjectId(key, "e"), size, 1_700_000_000 * 10**9)

    pages = [
        ListPage((meta("a/", 0), meta("a/z.bin", 1234)), ("a/sub/",), "t"),
        ListPage((meta("a/b\n", 5),), (), None),
    ]
    rows = listing_rows("a/", pages)
    assert [(row["name"], row["type"], row.get("size")) for row in rows] == [
        ("b\n", "file", 5),
        ("sub/", "directory", None),
        ("z.bin", "file", 1234),
    ]
    assert list(listing_lines(rows)) == [
        "   5  2023-11-14T22:13:20Z  b\\n",
        "   -  -                     sub/",
        "1234  2023-11-14T22:13:20Z  z.bin",
    ]
    assert list(listing_lines([])) == []
