"""What requests do, over a real socket: plans, events, waits, limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mounted import Mounted
from tests.hints.client import Client, connect, inode
from tests.hints.conftest import MIB


def drain(client: Client) -> tuple[int, list[str]]:
    """Events until `done`: how many bytes became ready, and the other kinds."""
    ready, kinds = 0, []
    while True:
        event = client.event("ready", "progress", "failed", "done")
        if event["ev"] == "ready":
            ready += sum(stop - start for start, stop in event["extents"])
        else:
            kinds.append(event["ev"])
        if event["ev"] == "done":
            return ready, kinds


def test_hello_says_what_is_served(mounted: Mounted) -> None:
    """Version, features, the block's size and the limits."""
    with connect(mounted.path, greet=False) as client:
        assert client.refused("stats") == "EPROTO"
        assert client.refused("hello", protocol=[99]) == "EPROTONOSUPPORT"
        hello = client.ask("hello", protocol=[1, 99], client="test")
        assert hello["protocol"] == 1
        assert hello["block_bytes"] == MIB
        assert "warm" in hello["features"]
        assert hello["limits"]["frame_bytes"] == 1 << 20


def test_a_selective_plan_fetches_what_it_needs(mounted: Mounted, weights: Path) -> None:
    """Every byte of the extents is told once, and little more is fetched; so the bytes read."""
    path = mounted.path / "a.safetensors"
    extents = [[5 * MIB, 6 * MIB], [12 * MIB, 13 * MIB], [MIB + 7, 2 * MIB]]
    with connect(mounted.path) as client, path.open("rb", buffering=0) as file:
        wish: dict[str, Any] = {"inode": os.fstat(file.fileno()).st_ino, "extents": extents}
        first = client.ask("plan", plan="p", files=[wish])
        assert first == {"plan": "p", "total_bytes": 3 * MIB - 7, "ready_bytes": 0}
        client.ask("subscribe", plan="p", every_bytes=MIB)
        ready, kinds = drain(client)
        assert ready == 3 * MIB - 7
        assert kinds[-1] == "done"
        assert "progress" in kinds
        assert mounted.counters()["bytes_fetched"] <= 1.1 * ready
        assert client.ask("plan", plan="p", files=[wish])["ready_bytes"] == ready  # the same again
        replaced = client.ask("plan", plan="p", files=[{**wish, "extents": [[0, 1]]}])
        assert replaced["total_bytes"] == 1
        want = (weights / "a.safetensors").read_bytes()
        for start, stop in extents:
            assert os.pread(file.fileno(), stop - start, start) == want[start:stop]


def test_a_plan_may_come_in_pieces(mounted: Mounted) -> None:
    """`append` adds to a plan; `done` comes again for what was added."""
    number = inode(mounted.path / "b.safetensors")
    with connect(mounted.path) as client:
        client.ask("plan", plan="p", files=[{"inode": number, "extents": [[0, 10]]}])
        client.ask("subscribe", plan="p")
        assert drain(client)[0] == 10
        added = {"inode": number, "extents": [[5, 20], [8 * MIB, 9 * MIB]]}
        answer = client.ask("plan", plan="p", append=True, files=[added])
        assert answer["total_bytes"] == 20 + MIB
        assert drain(client)[0] >= 10 + MIB
        assert client.ask("progress", plan="p")["ready_bytes"] == 20 + MIB


def test_waiting_brings_bytes_before_all_others(mounted: Mounted) -> None:
    """`wait` answers when the bytes are there, also those no plan's extent has."""
    with connect(mounted.path) as client:
        number = inode(mounted.path / "a.safetensors")
        client.ask("plan", plan="p", priority="warm", files=[{"inode": number}])
        place = {"plan": "p", "inode": number, "timeout_ms": 10_000}
        client.ask("wait", start=20 * MIB, stop=21 * MIB, **place)
        client.ask("wait", start=7, stop=7, **place)
        assert client.refused("wait", start=0, stop=1 << 40, **place) == "EINVAL"
        assert client.refused("wait", start=2, stop=1, **place) == "EINVAL"
        place["inode"] = 77
        assert client.refused("wait", start=0, stop=1, **place) == "ENOENT"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"plan": "p"}, "EINVAL"),
        ({"plan": "", "files": [{"inode": 1025}]}, "EINVAL"),
        ({"plan": "x" * 129, "files": [{"inode": 1025}]}, "EINVAL"),
        ({"plan": "p", "files": []}, "EINVAL"),
        ({"plan": "p", "files": [7]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": 1025}]}, "ENOENT"),
        ({"plan": "p", "files": [{"inode": 1}]}, "ENOENT"),
        ({"plan": "p", "files": [{"inode": 2}]}, "ENOENT"),
        ({"plan": "p", "files": [{"inode": -1}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": 1 << 70}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": True}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "extents": [[0, 1 << 50]]}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "extents": [[5, 4]]}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "extents": [[-5, 4]]}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "extents": [[0, 1.5]]}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "extents": "all"}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A", "etag": "another"}]}, "ESTALE"),
        ({"plan": "p", "files": [{"inode": "A", "etag": 5}]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A"}], "mode": "magic"}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A"}], "order": ["listed"]}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A"}], "priority": "demand"}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A"}], "window_bytes": 0}, "EINVAL"),
        ({"plan": "p", "files": [{"inode": "A"}], "group": {"id": "g"}}, "EINVAL"),
        (
            {"plan": "p", "files": [{"inode": "A"}], "group": {"id": "g", "rank": 2, "size": 2}},
            "EINVAL",
        ),
        ({"plan": "p", "files": [{"inode": "A"}] * 10_001}, "ENOSPC"),
    ],
)
def test_a_wrong_plan_is_refused_and_nothing_is_fetched(
    mounted_for_all: Mounted, fields: dict[str, Any], code: str
) -> None:
    """Each mistake has its code, and the connection goes on."""
    number = inode(mounted_for_all.path / "a.safetensors")
    for file in fields.get("files", ()):
        if isinstance(file, dict) and file.get("inode") == "A":
            file["inode"] = number
    with connect(mounted_for_all.path) as client:
        assert client.refused("plan", **fields) == code
        assert client.refused("progress", plan="p") == "ENOENT"
        assert client.refused("subscribe", plan="p") == "ENOENT"
        assert client.refused("cancel", plan="p") == "ENOENT"
        assert client.refused("dance") == "EOPNOTSUPP"
    assert mounted_for_all.counters()["bytes_fetched"] == 0


def test_closing_the_connection_cancels(mounted: Mounted) -> None:
    """Whoever is gone wants nothing any more: the file counts as closed."""
    path = mounted.path / "a.safetensors"
    with connect(mounted.path) as client:
        client.ask("plan", plan="p", files=[{"inode": inode(path), "extents": [[0, 1]]}])
        client.ask("cancel", plan="p")
        client.ask(
            "plan", plan="p", files=[{"inode": inode(path), "extents": [[5 * MIB, 6 * MIB]]}]
        )
    # Without its plan the shard is read like any other: touching the data starts all of it.
    with path.open("rb", buffering=0) as file:
        os.pread(file.fileno(), MIB, 12 * MIB)
        assert path.stat().st_size == len(file.readall())
