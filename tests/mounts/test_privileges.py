"""The processes of real mounts, of every kind of store, and what they are left with."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.store.source import open_writer, parse_source
from tests.harness.azurite import ACCOUNT, Azurite
from tests.harness.fake_gcs import FakeGcs
from tests.harness.mounted import Mounted, open_mount
from tests.harness.redis_server import PASSWORD, open_redis
from tests.harness.weed import Weed

READ_SEARCH = 1 << 2
MOUNTERS = 1 << 1 | READ_SEARCH | 1 << 8 | 1 << 21
WANTED = {
    "fusefs-keeper": MOUNTERS,
    "fusefs-daemon": READ_SEARCH,
    "fusefs-spawner": READ_SEARCH,
    "fusefs-fetch": READ_SEARCH,
    "fusefs-push": 0,
}
SETTLE_TIMEOUT_S = 30.0
"""The pusher is started last and nobody waits for it; on a busy machine it takes seconds."""


@dataclass(frozen=True, slots=True)
class State:
    """What /proc/PID/status says of one process."""

    permitted: int
    effective: int
    bounding: int
    no_new_privs: int
    filtered: bool
    core_bytes: str


def state_of(pid: int) -> tuple[str, State]:
    """The name of a process and its state."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))
    limits = Path(f"/proc/{pid}/limits").read_text()
    match = re.search(r"Max core file size\s+(\S+)\s+(\S+)", limits)
    assert match
    return fields["Name"], State(
        int(fields["CapPrm"], 16),
        int(fields["CapEff"], 16),
        int(fields["CapBnd"], 16),
        int(fields["NoNewPrivs"]),
        fields["Seccomp"] == "2",
        f"{match[1]} {match[2]}",
    )


def settled(mounted: Mounted) -> dict[str, set[State]]:
    """The states of all processes, by name, once the pusher has its own."""
    until = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        states: dict[str, set[State]] = {}
        for name, state in map(state_of, mounted.pids()):
            states.setdefault(name, set()).add(state)
        if set(WANTED) <= set(states) and {s.permitted for s in states["fusefs-push"]} == {0}:
            return states
        assert time.monotonic() < until, f"not settled: {states}"
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Place:
    """An empty place of some store, and what the environment needs for it."""

    source: str
    environment: Mapping[str, str]


@pytest.fixture(params=["file", "s3", "gs", "az", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place of each kind, for the mount and for this process."""
    kind: str = request.param
    if kind == "file":
        folder = tmp_path / "source"
        folder.mkdir()
        yield Place(f"file://{folder}", {})
    elif kind == "s3":
        weed: Weed = request.getfixturevalue("weed_environment")
        yield Place(f"s3://{request.getfixturevalue('bucket')}", weed.environment)
    elif kind == "gs":
        bucket = request.getfixturevalue("gcs_bucket")
        server: FakeGcs = request.getfixturevalue("fake_gcs")
        yield Place(f"gs://{bucket}", server.environment)
    elif kind == "az":
        azurite: Azurite = request.getfixturevalue("azurite_environment")
        container = request.getfixturevalue("container")
        yield Place(f"az://{ACCOUNT}/{container}", azurite.environment)
    else:
        monkeypatch = request.getfixturevalue("monkeypatch")
        with open_redis(tmp_path / "redis", password=PASSWORD) as redis:
            for name, value in redis.environment.items():
                monkeypatch.setenv(name, value)
            yield Place(f"{redis.source}?model=org/model", redis.environment)


def fill(place: Place, files: Mapping[str, bytes]) -> None:
    """Put files there, as `fusefs push` does."""
    source = parse_source(place.source)
    writer = open_writer(source, Config())
    for name, data in files.items():
        upload = writer.begin(source.prefix + name, len(data))
        for index, start in enumerate(range(0, len(data), upload.part_bytes)):
            upload.put_part(index, memoryview(data)[start : start + upload.part_bytes])
        upload.commit()
    writer.publish(source.prefix)
    writer.close()


def test_a_mount_keeps_only_what_it_needs(place: Place, plain: Path) -> None:
    """Every process has its role's capabilities and no other, and reads what it read with all."""
    files = {name: (plain / name).read_bytes() for name in ("big.bin", "one", "block+1")}
    fill(place, files)
    with open_mount(place.source, environment=place.environment) as mounted:
        states = settled(mounted)
        assert set(states) == set(WANTED)
        for name, had in WANTED.items():
            # The pusher has no right to narrow what it may not have anyway.
            bounding = had or READ_SEARCH
            assert states[name] == {State(had, had, bounding, 1, True, "0 0")}, name
        for name, data in files.items():
            assert (mounted.path / name).read_bytes() == data
        assert (mounted.path / ".fusefs/socket").is_socket()
        knobs = mounted.status()["kernel"]
        assert all(knob["set"] for knob in knobs.values()), knobs


def test_a_worker_that_is_replaced_keeps_no_more(plain: Path) -> None:
    """Whoever starts later, in the place of one that died, has the same rights."""
    with open_mount(f"file://{plain}", warnings_expected=True) as mounted:
        before = settled(mounted)
        old = mounted.status()["pids"]
        for pid in (old["spawner"], *old["workers"]):
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            new = mounted.status()["pids"]
            replaced = {*new["workers"]}.isdisjoint(old["workers"])
            if replaced and len(new["workers"]) == len(old["workers"]):
                break
            assert time.monotonic() < until, new
            time.sleep(0.05)
        assert (mounted.path / "big.bin").read_bytes() == (plain / "big.bin").read_bytes()
        assert settled(mounted) == before
