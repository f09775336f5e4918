"""Files that are no safetensors, read by their own loaders; and files of extreme sizes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed
from tests.mounts.test_changes import wait_until

MIB = 1 << 20
HUGE = 200 << 30


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of torch, a GGUF file, and a file that only claims to be an archive."""
    directory = tmp_path_factory.mktemp("kinds")
    noise = torch.Generator().manual_seed(5)
    state = {f"layer.{n}": torch.randn(1 << 20, generator=noise) for n in range(10)}
    torch.save(state, directory / "pytorch_model.bin")
    chance = random.Random(6)
    (directory / "m.gguf").write_bytes(b"GGUF" + chance.randbytes(40 * MIB))
    (directory / "garbage.pt").write_bytes(b"PK\x03\x04" + chance.randbytes(20 * MIB))
    return directory


@pytest.fixture
def mounted(weed: Weed, files: Path, upload: Callable[[Path], str]) -> Iterator[Mounted]:
    """Those files in a bucket, freshly mounted."""
    with open_mount(f"s3://{upload(files)}", environment=weed.environment) as mount:
        yield mount


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_an_archive(mounted: Mounted, files: Path, mmap: bool) -> None:
    """torch.load gives the same tensors, and costs one download."""
    path = files / "pytorch_model.bin"
    got = torch.load(mounted.path / path.name, weights_only=True, mmap=mmap)
    want = torch.load(path, weights_only=True)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert mounted.counters()["bytes_fetched"] <= path.stat().st_size


def test_gguf_and_garbage_read_whole(mounted: Mounted, files: Path) -> None:
    """Jumping in and reading on gives the file's bytes, whatever it is."""
    for name in ("m.gguf", "garbage.pt"):
        want = (files / name).read_bytes()
        with (mounted.path / name).open("rb") as file:
            for place in (0, 10 * MIB + 1, len(want) - 22):
                file.seek(place)
                assert file.read(5000) == want[place : place + 5000]
            file.seek(0)
            assert file.read() == want
    size = sum((files / name).stat().st_size for name in ("m.gguf", "garbage.pt"))
    assert mounted.counters()["bytes_fetched"] <= size


def test_an_object_of_200_gigabytes(tmp_path: Path) -> None:
    """Its size is right, and reads anywhere in it take no longer and no more memory than others."""
    for name in ("huge.safetensors", "huge.dat"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(HUGE)
    with open_mount(f"file://{tmp_path}", "--memory", "64M") as mounted:
        before = mounted.pss_bytes()
        for name in ("huge.safetensors", "huge.dat"):
            path = mounted.path / name
            assert path.stat().st_size == HUGE
            fd = os.open(path, os.O_RDONLY)
            began = time.monotonic()
            try:
                for number in range(100):
                    offset = number * 7_919_000_003 % (HUGE - 4096)
                    assert os.pread(fd, 4096, offset) == bytes(4096)
            finally:
                os.close(fd)
            assert time.monotonic() - began < 30
        wait_until(lambda: mounted.status()["arena"]["fetching"] == 0)
        assert mounted.counters()["bytes_fetched"] <= 2 * 110 * MIB
        assert mounted.pss_bytes() - before < (64 + 50) * MIB
