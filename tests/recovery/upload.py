"""A plain folder into a bucket of its own, many files at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.harness.weed import Weed

THREADS = 8


def upload(weed: Weed, plain: Path, bucket: str = "plain") -> str:
    """Upload all of it; returns the bucket's name."""
    client = weed.client()
    client.create_bucket(Bucket=bucket)
    files = [file for file in plain.rglob("*") if file.is_file()]

    def put(file: Path) -> None:
        client.upload_file(str(file), bucket, str(file.relative_to(plain)))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(put, files))
    return bucket
