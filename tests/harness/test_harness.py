"""The harness keeps its word: what it starts ends, what it records is true, what hangs is freed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.harness.memory import MARKER, marked_pids, open_peak, pss_bytes
from tests.harness.model import make_model
from tests.harness.mounted import ROOT, MountFailed, open_mount
from tests.harness.proxy import open_recording_proxy
from tests.harness.weed import Weed

END_TIMEOUT_MS = 20_000
"""How long the kernel may take to end an orphan on a busy machine."""

_OPEN_WEED = """
import sys, time
from pathlib import Path
from tests.harness.weed import open_weed
with open_weed(Path(sys.argv[1])) as weed:
    print(weed.pid, flush=True)
    sys.stdin.read()
"""


def _wait_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(END_TIMEOUT_MS))


@pytest.mark.parametrize("killed", [True, False])
def test_the_server_ends_with_its_opener(tmp_path: Path, killed: bool) -> None:
    """No server outlives the process that opened it, neither in order nor by SIGKILL."""
    opener = subprocess.Popen(
        [sys.executable, "-c", _OPEN_WEED, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with opener:
        assert opener.stdout is not None
        pidfd = os.pidfd_open(int(opener.stdout.readline()))
        if killed:
            opener.kill()
        opener.communicate()
        assert _wait_ended(pidfd)
        os.close(pidfd)


def test_the_proxy_records_what_was_asked(weed: Weed, bucket: str, tmp_path: Path) -> None:
    """Each request appears once, with its operation, key, range and condition, in order."""
    key = "a b/ü+%.bin"
    with open_recording_proxy(weed.endpoint, tmp_path) as proxy:
        client = weed.client(proxy.endpoint)
        client.put_object(Bucket=bucket, Key=key, Body=b"0123456789")
        proxy.clear()
        etag = client.head_object(Bucket=bucket, Key=key)["ETag"]
        client.get_object(Bucket=bucket, Key=key, Range="bytes=2-4", IfMatch=etag)["Body"].read()
        client.list_objects_v2(Bucket=bucket, Prefix="a b/", Delimiter="/")
        requests = proxy.requests()
        assert [request.operation for request in requests] == ["HEAD", "GET", "LIST"]
        assert [request.key for request in requests] == [key, key, ""]
        assert (requests[1].range, requests[1].if_match) == ("bytes=2-4", etag)
        assert (requests[1].status, requests[1].body_bytes) == (206, 3)
        assert requests[2].query["prefix"] == "a b/"
        assert proxy.requests("GET") == [requests[1]]
        client.close()


def test_a_model_is_the_same_every_time(tmp_path: Path) -> None:
    """Two models of one size are equal byte by byte, in the number of shards asked for."""
    one = make_model(tmp_path / "one", shards=3, shard_bytes=1 << 20)
    other = make_model(tmp_path / "other", shards=3, shard_bytes=1 << 20)
    assert [path.name for path in one.files] == [path.name for path in other.files]
    assert all(
        a.read_bytes() == b.read_bytes() for a, b in zip(one.files, other.files, strict=True)
    )
    assert len(one.shards) == 3
    assert all(0.8e6 < shard.stat().st_size < 1.4e6 for shard in one.shards)


def test_a_model_is_complete(tmp_path: Path) -> None:
    """The index names exactly the tensors of each shard; numbers are finite and of one type."""
    model = make_model(tmp_path, shards=2, shard_bytes=400_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    seen = {}
    for shard in model.shards:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                seen[name] = shard.name
                tensor = file.get_tensor(name)
                assert tensor.dtype == torch.bfloat16
                assert bool(tensor.isfinite().all())
    assert seen == index
    assert len(seen) == model.tensors


def test_memory_counts_the_marked_processes() -> None:
    """A marked process is found, and a peak of its memory is seen, while it lives."""
    code = "import sys; data = bytearray(64 << 20); print(1, flush=True); sys.stdin.read()"
    environment = {**os.environ, MARKER: "test-memory"}
    with open_peak("test-memory") as peak:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            assert marked_pids("test-memory") == [process.pid]
            assert pss_bytes([process.pid]) > 64 << 20
            # Longer than the sampler waits before it looks for new processes.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1.0)
            process.communicate()
    assert peak.bytes > 64 << 20
    assert marked_pids("test-memory") == []


def test_a_failed_mount_is_told(tmp_path: Path) -> None:
    """A command that fails raises with its exit status and its sentence."""
    with pytest.raises(MountFailed) as caught, open_mount(f"file://{tmp_path}/missing"):
        pass
    assert caught.value.status in (1, 2)
    assert caught.value.stderr.startswith("fusefs: ")


def test_the_watchdog_frees_a_reader_that_hangs(tmp_path: Path) -> None:
    """When every process of a mount stands still, a reader gets an error and nothing stays."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    markers = []

    def read_what_stands_still() -> None:
        with open_mount(f"file://{tmp_path}", limit_s=5) as mounted:
            markers.append(mounted.marker)
            for pid in mounted.pids():
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(OSError, match="file"):
                (mounted.path / "file").read_bytes()

    with pytest.raises(AssertionError, match="the watchdog had to end the mount"):
        read_what_stands_still()
    assert marked_pids(markers[0]) == []
