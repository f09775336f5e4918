"""Memory of all processes of a mount stays within the limit and a constant."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.mounted import open_mount
from tests.harness.weed import Weed

MIB = 1 << 20
CONSTANT_MIB = 150


@pytest.mark.parametrize(("limit_mib", "workers"), [(16, 2), (64, 2), (128, 8)])
def test_memory_stays_within_the_limit(
    weed: Weed, bucket: str, limit_mib: int, workers: int
) -> None:
    """PSS of keeper, daemon, spawner and workers, while eight readers stream and jump about."""
    size = 192 * MIB
    weed.client().put_object(Bucket=bucket, Key="w.safetensors", Body=os.urandom(size))
    options = ("--memory", f"{limit_mib}M", "--set", f"engine.workers={workers}")
    with open_mount(f"s3://{bucket}", *options, environment=weed.environment) as mounted:
        fd = os.open(mounted.path / "w.safetensors", os.O_RDONLY)

        def stream(number: int) -> int:
            start = number * (size // 8)
            pieces = range(start, start + size // 8, MIB)
            return sum(len(os.pread(fd, MIB, at)) for at in pieces)

        try:
            with mounted.open_peak() as peak, ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(stream, range(8))) == size
        finally:
            os.close(fd)
        assert peak.samples > 3
        assert peak.bytes <= (limit_mib + CONSTANT_MIB) * MIB
        assert mounted.status()["arena"]["size_bytes"] <= limit_mib * MIB
