"""The ceiling: what the SDK can fetch from this origin on this machine with no mount in between.

A program (`python -m tests.bench.raw JOB`): worker processes x threads, each thread one client
connection and one recycled buffer, conditional range GETs straight from the socket into it. One
idea: everything a mount must do anyway, and nothing else. Prints a JSON result.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.bench.race import race

SAMPLE_BYTES = 64
"""Compared per range: enough to see wrong, shifted or missing bytes, too little to cost time."""


@dataclass(frozen=True, slots=True)
class Range:
    """One request: `size` bytes at `start` of `key`, of the version `etag`."""

    key: str
    etag: str
    start: int
    size: int


class _Fetcher:
    """One process's client; stateless but for it."""

    def __init__(self, job: dict[str, Any], ranges: list[Range]) -> None:
        self._job = job
        self._ranges = ranges
        config = Config(
            max_pool_connections=job["threads"],
            s3={"addressing_style": "path"},
            # Otherwise the body is wrapped in a checksum that copies it.
            response_checksum_validation="when_required",
        )
        self._client = boto3.Session().client("s3", config=config)

    def fetch(self, number: int, target: memoryview) -> str | None:
        """Fetch a range and compare a sample of it; what is wrong, else None."""
        wanted = self._ranges[number]
        try:
            self._receive(wanted, target)
        # A figure without these bytes would be a lie.
        except (BotoCoreError, ClientError, EOFError, HTTPException, OSError) as error:
            return f"{wanted}: {error!r}"
        original = Path(self._job["originals"]) / wanted.key.rpartition("/")[2]
        return None if same_sample(original, wanted.start, target) else f"{wanted}: other bytes"

    def _receive(self, wanted: Range, target: memoryview) -> None:
        answer = self._client.get_object(
            Bucket=self._job["bucket"],
            Key=wanted.key,
            IfMatch=wanted.etag,
            Range=f"bytes={wanted.start}-{wanted.start + wanted.size - 1}",
        )
        stream = answer["Body"]._raw_stream
        done = 0
        while done < wanted.size:
            # http.client reads into our memory; urllib3's own readinto would copy.
            count = stream._fp.readinto(target[done:])
            if count == 0:
                raise EOFError(f"{done} of {wanted.size} bytes")
            done += count
        stream.release_conn()


def same_sample(original: Path, start: int, target: memoryview) -> bool:
    """Whether some bytes of `target` are those of the original, which has it from `start` on."""
    at = (start * 31 // 7) % max(1, len(target) - SAMPLE_BYTES)
    sample = target[at : at + SAMPLE_BYTES].tobytes()
    with original.open("rb", buffering=0) as file:
        file.seek(start + at)
        return file.read(len(sample)) == sample


def cut(objects: list[dict[str, Any]], range_bytes: int) -> list[Range]:
    """Cut every object into ranges, in order."""
    return [
        Range(entry["key"], entry["etag"], start, min(range_bytes, entry["size"] - start))
        for entry in objects
        for start in range(0, entry["size"], range_bytes)
    ]


def main() -> None:
    """Run the job, a JSON argument."""
    job = json.loads(sys.argv[1])
    ranges = cut(job["objects"], job["range_bytes"])
    sizes = [wanted.size for wanted in ranges]
    race(lambda: _Fetcher(job, ranges).fetch, sizes, job["processes"], job["threads"])


if __name__ == "__main__":
    main()
