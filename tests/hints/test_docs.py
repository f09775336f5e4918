"""docs/hints.md is what is served: its frames byte by byte, its limits, its verbs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fusefs.hints import peer, plans, server, verbs
from loaderhint import protocol
from loaderhint.protocol import encode
from tests.harness.mounted import open_mount
from tests.hints.client import connect, inode

SIZE = 2_621_440
"""Of the file in the documented conversation."""

INODE = 4711


def frames(repository: Path) -> list[tuple[str, bytes, dict[str, Any]]]:
    """The documented frames: direction, bytes, message."""
    text = (repository / "docs" / "hints.md").read_text("utf-8")
    found = re.search(r"```frames\n(.*?)```", text, re.DOTALL)
    assert found is not None
    result = []
    for line in found[1].splitlines():
        direction, length, body = line.split(" ", 2)
        result.append((direction, bytes.fromhex(length) + body.encode(), json.loads(body)))
    return result


def test_documented_frames_are_what_is_sent(repository: Path) -> None:
    """Each documented message encodes to the documented bytes."""
    documented = frames(repository)
    assert len(documented) > 15
    for _, data, message in documented:
        assert encode(message) == data


def test_the_documented_conversation_takes_place(repository: Path, tmp_path: Path) -> None:
    """A mount answers the documented requests with the documented answers, in this order."""
    (tmp_path / "x.safetensors").write_bytes(bytes(SIZE))
    with open_mount(f"file://{tmp_path}", "--memory", "64M") as mounted:
        number = inode(mounted.path / "x.safetensors")
        with connect(mounted.path, greet=False) as client:
            for direction, data, message in frames(repository):
                if direction == ">":
                    body = data[4:].replace(str(INODE).encode(), str(number).encode())
                    client.socket.sendall(len(body).to_bytes(4, "little") + body)
                elif "id" in message:
                    assert client.answer(message["id"]) == message
                else:
                    event = client.event(message["ev"])
                    assert event == {**message, **({"inode": number} if "inode" in event else {})}


def test_documented_limits_are_those_of_the_code(repository: Path) -> None:
    """Every number of the table of limits."""
    text = (repository / "docs" / "hints.md").read_text("utf-8")
    for what, limit in (
        ("connections", server.PEERS_MAX),
        ("plans of a connection", protocol.PLANS_MAX),
        ("plans of all connections and verbs", plans.ALL_PLANS_MAX),
        ("files of one plan", protocol.FILES_MAX),
        ("extents in all plans of a connection, merged", protocol.EXTENTS_MAX),
        ("blocks in all plans of a connection", plans.BLOCKS_MAX),
        ("waits of a connection at once", peer.WAITS_MAX),
    ):
        assert f"| {what} | {limit:,} |" in text
    assert protocol.FRAME_BYTES_MAX == 1 << 20
    for name in (verbs.PREFETCH, verbs.PROGRESS, verbs.CANCEL):
        assert f"`{name.decode()}`" in text
    assert f"than {verbs.PLANS_MAX}." in text
