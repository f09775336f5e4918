"""Pushed pages on real mounts: exact bytes, few READs, and nothing pushed where it must not be."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fusefs.engine.pagecache import STARTS_MAX
from tests.harness.cgroup import open_cgroup
from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
PAGE = 4096
SEGMENT = 64 * MIB
LOAD_BYTES = 2 * SEGMENT + 22 * MIB + 777
SIZES = (1, PAGE - 1, PAGE, PAGE + 1, MIB - 1, MIB, MIB + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1)


def shard(size: int) -> bytes:
    """A valid safetensors file of exactly `size` bytes with one tensor of noise."""
    noise = np.random.SFC64(size).random_raw(size // 8).tobytes()[: size - 4096]
    tensor = {"dtype": "U8", "shape": [len(noise)], "data_offsets": [0, len(noise)]}
    header = json.dumps({"w": tensor}).encode().ljust(4096 - 8)
    return len(header).to_bytes(8, "little") + header + noise


@pytest.fixture(scope="module")
def loads() -> bytes:
    """A shard with two milestones behind its head."""
    return shard(LOAD_BYTES)


@pytest.fixture(scope="module")
def push_bucket(weed: Weed, make_bucket: Callable[[], str], loads: bytes) -> str:
    """That shard, and files that end around pages, blocks and segments."""
    bucket, client = make_bucket(), weed.client()
    client.put_object(Bucket=bucket, Key="w.safetensors", Body=loads)
    for size in SIZES:
        client.put_object(Bucket=bucket, Key=str(size), Body=loads[:size])
    return bucket


@pytest.fixture
def fresh(weed: Weed, push_bucket: str) -> Iterator[Mounted]:
    """A fresh mount of that bucket."""
    with open_mount(f"s3://{push_bucket}", environment=weed.environment) as mounted:
        yield mounted


def read_all(path: Path) -> bytes:
    """The file, by read(2)."""
    return path.read_bytes()


def map_all(path: Path) -> bytes:
    """The file, by page faults from its begin to its end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        return b"".join(mapping[at : at + MIB] for at in range(0, len(mapping), MIB))


def absent_blocks(path: Path) -> int:
    """How many blocks of the file have a page that is not in the page cache now (mincore(2))."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)  # writable: for its address
    view = (ctypes.c_char * len(mapping)).from_buffer(mapping)
    pages = (ctypes.c_ubyte * -(-len(mapping) // PAGE))()
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(ctypes.addressof(view))
    assert libc.mincore(address, ctypes.c_size_t(len(mapping)), pages) == 0, ctypes.get_errno()
    return len({page // (MIB // PAGE) for page, resident in enumerate(pages) if not resident & 1})


def settled(mounted: Mounted) -> dict[str, int]:
    """The counters, once nothing is under way."""

    def is_quiet() -> bool:
        status = mounted.status()
        return not status["arena"]["fetching"] and not status["page_cache"]["pushing"]

    wait_until(is_quiet)
    return mounted.counters()


@pytest.mark.parametrize("load", [read_all, map_all])
def test_a_cold_load_is_exact_and_mostly_pushed(
    fresh: Mounted, loads: bytes, load: Callable[[Path], bytes]
) -> None:
    """Most bytes come without a READ; loaded again, they come without the store."""
    path = fresh.path / "w.safetensors"
    before = path.stat()
    assert load(path) == loads
    counters = settled(fresh)
    assert counters["bytes_pushed"] > LOAD_BYTES // 2
    assert counters["bytes_read"] < LOAD_BYTES // 2
    assert (counters["read_errors"], counters["pushes_failed"]) == (0, 0)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    dropped = absent_blocks(path)
    assert load(path) == loads
    again = settled(fresh)
    if not dropped:  # else the kernel made room for others, as it may
        lost = again["pushed_pages_lost_bytes"] - counters["pushed_pages_lost_bytes"]
        assert again["bytes_fetched"] - counters["bytes_fetched"] <= lost


def test_every_size_keeps_its_size_and_its_bytes(fresh: Mounted, loads: bytes) -> None:
    """Ends around a page, a block and a segment, read while and after they are pushed."""
    for size in SIZES:
        path = fresh.path / str(size)
        before = path.stat()
        with path.open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100, 0) == loads[: min(100, size)]
            settled(fresh)
            assert os.fstat(file.fileno()).st_size == size
            assert map_all(path) == loads[:size]
            assert os.pread(file.fileno(), PAGE, size - 1) == loads[size - 1 : size]
        assert read_all(path) == loads[:size]
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    counters = fresh.counters()
    assert counters["bytes_pushed"] > SEGMENT
    assert counters["pushes_failed"] == 0


def test_direct_readers_are_exact_and_not_pushed_for(fresh: Mounted, loads: bytes) -> None:
    """While a file is open with O_DIRECT alone nothing of it goes into the page cache."""
    fd = os.open(fresh.path / "w.safetensors", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4 * MIB)
    try:
        for at in range(0, LOAD_BYTES, 4 * MIB):
            got = os.preadv(fd, [buffer], at)
            assert buffer[:got] == loads[at : at + 4 * MIB]
        assert settled(fresh)["bytes_pushed"] == 0
    finally:
        os.close(fd)


def test_pushing_can_be_switched_off(weed: Weed, push_bucket: str, loads: bytes) -> None:
    """With kernel.push=false READs bring every byte, and status says why."""
    with open_mount(
        f"s3://{push_bucket}", "--set", "kernel.push=false", environment=weed.environment
    ) as mounted:
        assert read_all(mounted.path / "w.safetensors") == loads
        assert mounted.counters()["bytes_pushed"] == 0
        assert mounted.status()["page_cache"]["refused"] == "kernel.push is off"


def test_an_overwritten_object_is_never_mixed_by_pushes(weed: Weed, bucket: str) -> None:
    """The old handle gives old bytes or ESTALE, a new one new bytes, whatever is pushed."""
    client = weed.client()
    old, new = shard(SEGMENT + MIB), shard(SEGMENT + MIB + 1)
    client.put_object(Bucket=bucket, Key="w.safetensors", Body=old)
    options = ("--memory", "32M", "--set", "tree.ttl_s=0")
    with open_mount(
        f"s3://{bucket}", *options, environment=weed.environment, warnings_expected=True
    ) as mounted:
        path, errors = mounted.path / "w.safetensors", set()
        with path.open("rb", buffering=0) as file:
            for at in range(0, 8 * MIB, MIB):
                assert os.pread(file.fileno(), MIB, at) == old[at : at + MIB]
            client.put_object(Bucket=bucket, Key="w.safetensors", Body=new)
            for at in range(0, len(old), MIB):
                try:
                    got = os.pread(file.fileno(), MIB, at)
                except OSError as error:
                    errors.add(error.errno)
                else:
                    assert got == old[at : at + len(got)]
            assert errors <= {errno.ESTALE, errno.EIO}
            wait_until(lambda: path.stat().st_size == len(new))
            assert map_all(path) == new
            assert mounted.counters()["bytes_pushed"] > 0


def test_a_pusher_that_is_killed_costs_no_byte(fresh_quiet: Mounted, loads: bytes) -> None:
    """In mid-load, until it is left dead: then status says so and READs bring the rest."""
    pushers: set[int] = set()

    def pusher() -> int:
        pid: int = fresh_quiet.status()["pids"]["pusher"]
        return pid

    with (fresh_quiet.path / "w.safetensors").open("rb", buffering=0) as file:
        for number, at in enumerate(range(0, LOAD_BYTES, MIB)):
            assert os.pread(file.fileno(), MIB, at) == loads[at : at + MIB]
            if number % 20 == 5 and len(pushers) < STARTS_MAX:
                wait_until(lambda: pusher() not in {0, *pushers})
                pushers.add(pusher())
                os.kill(pusher(), signal.SIGKILL)
    status = fresh_quiet.status()
    assert len(pushers) == STARTS_MAX
    wait_until(
        lambda: fresh_quiet.status()["page_cache"]["refused"] == "the pusher died repeatedly"
    )
    assert status["counters"]["read_errors"] == 0
    assert status["counters"]["bytes_pushed"] > 0


@pytest.fixture
def fresh_quiet(weed: Weed, push_bucket: str) -> Iterator[Mounted]:
    """A fresh mount that may warn."""
    with open_mount(
        f"s3://{push_bucket}", environment=weed.environment, warnings_expected=True
    ) as mounted:
        yield mounted


def test_a_small_arena_pushes_too(weed: Weed, push_bucket: str, loads: bytes) -> None:
    """With 16 MiB of memory a load is exact, and pushes and READs get their slots."""
    with open_mount(
        f"s3://{push_bucket}", "--memory", "16M", environment=weed.environment
    ) as mounted:
        assert map_all(mounted.path / "w.safetensors") == loads
        counters = settled(mounted)
        assert counters["bytes_pushed"] > 0
        assert counters["read_errors"] == 0


def test_a_memory_cgroup_bounds_what_is_pushed(weed: Weed, bucket: str) -> None:
    """A shard larger than the group loads exactly; pushes stay below the room, nobody is killed."""
    limit, load = 256 * MIB, shard(288 * MIB)
    weed.client().put_object(Bucket=bucket, Key="w.safetensors", Body=load)
    with open_cgroup(limit) as cgroup:
        with open_mount(
            f"s3://{bucket}",
            environment=weed.environment,
            prefix_command=cgroup.prefix_command,
            warnings_expected=True,
        ) as mounted:
            path = mounted.path / "w.safetensors"
            with path.open("rb", buffering=0) as file:
                for at in range(0, len(load), MIB):
                    assert os.pread(file.fileno(), MIB, at) == load[at : at + MIB]
                    if at % (16 * MIB) == 0:
                        pages = mounted.status()["page_cache"]
                        assert pages["room_bytes"] < limit // 2
                        assert pages["ahead_bytes"] < limit // 2 + SEGMENT
            assert map_all(path) == load
            counters = mounted.counters()
            assert counters["bytes_pushed"] > 0
            assert counters["read_errors"] == 0
        assert cgroup.killed() == 0
