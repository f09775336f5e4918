"""Objects that change, workers that die, stores that fail: right bytes or the documented error."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed

MIB = 1 << 20


def pattern(letter: bytes, size: int) -> bytes:
    """Bytes that tell two versions apart everywhere."""
    return letter * size


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Poll with a bound; AssertionError past it."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["overwritten", "deleted"])
def test_a_changed_object_is_estale_and_never_mixed(weed: Weed, bucket: str, kind: str) -> None:
    """An open handle gives old bytes or ESTALE; a new open gives the new version at once."""
    client = weed.client()
    size = 64 * MIB
    client.put_object(Bucket=bucket, Key="w.bin", Body=pattern(b"a", size))
    client.put_object(Bucket=bucket, Key="stays", Body=b"x")
    with open_mount(
        f"s3://{bucket}", environment=weed.environment, warnings_expected=True
    ) as mounted:
        fd = os.open(mounted.path / "w.bin", os.O_RDONLY)
        try:
            assert os.pread(fd, 4096, 0) == pattern(b"a", 4096)
            if kind == "overwritten":
                client.put_object(Bucket=bucket, Key="w.bin", Body=pattern(b"b", size))
            else:
                client.delete_object(Bucket=bucket, Key="w.bin")
            errors = set()
            for offset in range(size - MIB, 0, -7 * MIB):
                try:
                    assert os.pread(fd, 65_536, offset) == pattern(b"a", 65_536)
                except OSError as error:
                    errors.add(error.errno)
            assert errors == {errno.ESTALE}
            if kind == "overwritten":
                assert (mounted.path / "w.bin").read_bytes() == pattern(b"b", size)
                with pytest.raises(OSError, match="Stale"):
                    os.pread(fd, 65_536, 40 * MIB)
            else:
                wait_until(lambda: not (mounted.path / "w.bin").exists())
        finally:
            os.close(fd)


def test_a_replaced_file_in_a_directory_is_seen_too(tmp_path: Path) -> None:
    """The same promise for file://: rename over the file, and the handle is stale."""
    source = tmp_path / "source"
    source.mkdir()
    size = 32 * MIB
    (source / "w.bin").write_bytes(pattern(b"a", size))
    with open_mount(f"file://{source}", warnings_expected=True) as mounted:
        with (mounted.path / "w.bin").open("rb", buffering=0) as file:
            assert file.read(4096) == pattern(b"a", 4096)
            (source / "new").write_bytes(pattern(b"b", size))
            (source / "new").rename(source / "w.bin")
            with pytest.raises(OSError, match="Stale"):
                os.pread(file.fileno(), 65_536, size // 2)  # its end is here already
        assert (mounted.path / "w.bin").read_bytes() == pattern(b"b", size)


def read_through(mounted: Mounted, name: str, during: Callable[[int], None]) -> bytes:
    """Read a file in pieces, with something happening after each."""
    data = b""
    with (mounted.path / name).open("rb", buffering=0) as file:
        while piece := file.read(2 * MIB):
            data += piece
            during(len(data))
    return data


@pytest.mark.parametrize("victim", ["workers", "spawner"])
def test_dead_processes_are_replaced_and_no_byte_is_lost(
    weed: Weed, bucket: str, victim: str
) -> None:
    """SIGKILL of workers, or of what they are forked from, goes unnoticed in mid-read."""
    want = os.urandom(64 * MIB)
    weed.client().put_object(Bucket=bucket, Key="w.bin", Body=want)
    with open_mount(
        f"s3://{bucket}", "--memory", "32M", environment=weed.environment, warnings_expected=True
    ) as mounted:
        before = mounted.status()["pids"]

        def kill(read: int) -> None:
            if read in (10 * MIB, 30 * MIB):
                pids = mounted.status()["pids"]
                doomed = pids["workers"] + ([pids["spawner"]] if victim == "spawner" else [])
                for pid in doomed:
                    with contextlib.suppress(ProcessLookupError):  # its successor is on its way
                        os.kill(pid, signal.SIGKILL)

        assert read_through(mounted, "w.bin", kill) == want
        count = len(before["workers"])
        wait_until(lambda: len(set(mounted.status()["pids"]["workers"])) == count)
        after = mounted.status()
        assert not set(after["pids"]["workers"]) & set(before["workers"])
        assert after["counters"]["workers_replaced"] >= count
        assert after["counters"]["read_errors"] == 0


def test_a_bucket_that_vanishes_is_an_error_and_not_a_hang(weed: Weed, bucket: str) -> None:
    """Once the bucket is gone, names and bytes fail with an errno in bounded time."""
    client = weed.client()
    client.put_object(Bucket=bucket, Key="w.bin", Body=bytes(16 * MIB))
    options = ("--set", "tree.ttl_s=0.5", "--set", "tree.negative_ttl_s=0.5")
    with open_mount(
        f"s3://{bucket}", *options, environment=weed.environment, warnings_expected=True
    ) as mounted:
        with (mounted.path / "w.bin").open("rb", buffering=0) as file:
            client.delete_object(Bucket=bucket, Key="w.bin")
            client.delete_bucket(Bucket=bucket)
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is asserted
                os.pread(file.fileno(), 4096, 8 * MIB)
            assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
        wait_until(lambda: not (mounted.path / "w.bin").exists())
