"""Requests that outlive their deadline are noticed; those under way can be seen in the status."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from fusefs.config import Config
from fusefs.engine.blocks import Block, File, State
from fusefs.errors import StoreTimeout
from fusefs.mount.operations import Hooks, Operations
from fusefs.mount.requests import LOOK_EVERY_S, SLACK_S, Requests, describe_read
from fusefs.objects import ObjectId, ObjectMeta
from fusefs.policy.kinds import Kind
from fusefs.policy.plan import FilePlan
from fusefs.telemetry.counters import Counters
from fusefs.tree.inodes import ROOT_INODE
from fusefs.tree.listings import LISTING_DEADLINE_S
from tests.conftest import ExpectedWarnings
from tests.harness.mounted import open_mount
from tests.harness.proxy import open_recording_proxy
from tests.harness.weed import Weed
from tests.mounts.test_changes import wait_until
from tests.tree.simulated import SimulatedBucket, make_tree

Clock = trio.testing.MockClock
MIB = 1 << 20


class _Folder:
    """Stands in for the folder of the hints' socket: it has no names."""

    def lookup(self, parent: int, name: bytes) -> None:
        return None


class _Control:
    folder = _Folder()


def make_operations(bucket: SimulatedBucket, counters: Counters) -> Operations:
    """The handlers over a simulated bucket, without an engine."""
    nothing = cast(Any, None)
    requests = Requests(counters, read_deadline_s=120.0)
    hooks = Hooks(lambda kind: None, requests)
    control = cast(Any, _Control())
    tree = make_tree(bucket)
    return Operations(tree, nothing, nothing, nothing, control, Config(), hooks)


async def test_a_request_past_every_deadline_is_told_once(
    autojump_clock: Clock, expect_warning: ExpectedWarnings
) -> None:
    """A look-up that waits for ever is logged with what it is about, counted, and the oldest."""
    expect_warning("a request is stuck for .* LOOKUP of 'weights' in /")
    bucket, counters = SimulatedBucket(["weights"], latency_s=float("inf")), Counters()
    operations = make_operations(bucket, counters)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.requests.run, operations.describe)
        nursery.start_soon(
            operations.lookup, pyfuse3.InodeT(ROOT_INODE), b"weights", pyfuse3.RequestContext()
        )
        await trio.sleep(120 + SLACK_S - 1)
        assert counters.requests_stuck == 0
        await trio.sleep(1 + 10 * LOOK_EVERY_S)
        assert counters.requests_stuck == 1
        told = operations.requests.statistics(operations.describe)
        assert told["under_way"] == 1
        assert told["oldest"] == "LOOKUP of 'weights' in /"
        assert told["oldest_s"] >= 120 + SLACK_S
        nursery.cancel_scope.cancel()
    assert operations.requests.statistics(operations.describe)["under_way"] == 0


async def test_answered_requests_leave_nothing(autojump_clock: Clock) -> None:
    """Found, absent or failed: each request is forgotten with its answer."""
    bucket, counters = SimulatedBucket(["weights"]), Counters()
    operations = make_operations(bucket, counters)
    context = pyfuse3.RequestContext()
    await operations.lookup(pyfuse3.InodeT(ROOT_INODE), b"weights", context)
    await operations.lookup(pyfuse3.InodeT(ROOT_INODE), b"absent", context)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.lookup(pyfuse3.InodeT(ROOT_INODE), b"x" * 256, context)
    assert refused.value.errno == errno.ENAMETOOLONG
    assert operations.gauges() == {
        "requests": {"under_way": 0, "oldest_s": 0.0, "oldest": None},
        "open": {"files": 0, "handles": 0, "directories": 0, "entries": 2},
    }


async def test_a_process_that_stood_still_blames_no_request(mock_clock: Clock) -> None:
    """After SIGSTOP, or a frozen machine, requests get another look to notice their deadlines."""
    counters = Counters()
    requests = Requests(counters, read_deadline_s=1.0)
    requests.began("read", (1, 0, 4096))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.run, lambda handler, arguments: "")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(600)
        await trio.testing.wait_all_tasks_blocked()
        assert counters.requests_stuck == 0
        requests.ended(1)
        mock_clock.jump(LOOK_EVERY_S)
        await trio.testing.wait_all_tasks_blocked()
        assert counters.requests_stuck == 0
        nursery.cancel_scope.cancel()


async def test_a_listing_that_never_ends_has_a_deadline(autojump_clock: Clock) -> None:
    """However many pages come, each in time: a directory is listed within minutes or not at all."""
    keys = [f"{number:04d}" for number in range(900)]
    tree = make_tree(SimulatedBucket(keys, page_keys=1, latency_s=1.0))
    began = trio.current_time()
    with pytest.raises(StoreTimeout, match="no whole listing of"):
        await tree.listing(ROOT_INODE)
    assert trio.current_time() - began == pytest.approx(LISTING_DEADLINE_S + 1, abs=1)


def test_a_read_says_how_far_its_blocks_are() -> None:
    """What a stuck READ waits for can be told from its blocks."""
    meta = ObjectMeta(ObjectId("w.bin", "v1"), 4 * MIB, 0)
    file = File(meta, FilePlan(meta.size, MIB, 8, Kind.OPAQUE))
    file.blocks[0] = Block(file, 0)
    file.blocks[1] = Block(file, 1)
    file.blocks[1].state = State.FETCHING
    text = describe_read(file, 100, 3 * MIB)
    assert text.startswith("READ of w.bin [100, 3145828), blocks: ")
    assert text.endswith("1 queued, 1 fetching, 2 not asked for")


def test_the_oldest_request_of_a_mount_can_be_seen(weed: Weed, bucket: str, tmp_path: Path) -> None:
    """A read that waits for the store stands in the status, with the file's name and its blocks."""
    weed.client().put_object(Bucket=bucket, Key="w.safetensors", Body=os.urandom(4 * MIB))
    with (
        open_recording_proxy(weed.endpoint, tmp_path) as proxy,
        open_mount(
            f"s3://{bucket}",
            environment={**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint},
        ) as mounted,
    ):
        path = mounted.path / "w.safetensors"
        assert path.stat().st_size == 4 * MIB
        proxy.hold_shards()
        reader = threading.Thread(target=path.read_bytes)
        reader.start()
        try:
            wait_until(lambda: mounted.status()["requests"]["oldest"] is not None)
            told = mounted.status()["requests"]
            shown = mounted.run_cli("status", str(mounted.path)).stdout
        finally:
            proxy.release_shards()
            reader.join()
        assert told["oldest"].startswith("READ of w.safetensors [0, ")
        assert "fetching" in told["oldest"]
        assert told["oldest_s"] >= 1
        assert told["under_way"] >= 2
        assert "READ of w.safetensors [0, " in shown
        wait_until(lambda: mounted.status()["requests"]["under_way"] == 1)
        assert mounted.counters()["requests_stuck"] == 0
