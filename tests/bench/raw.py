"""The ceiling: what the SDK can fetch from this origin on this machine with no mount in between.

A program (`python -m tests.bench.raw JOB`): worker processes x threads, each thread one client
connection and one recycled buffer, conditional range GETs straight from the socket into it. One
idea: everything a mount must do anyway, and nothing else. Prints a JSON result.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

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
    """The threads of one worker process.

    The mutable state of a fetcher is `_wrong`, appended to by its threads.
    """

    def __init__(self, job: dict[str, Any], ranges: list[Range], taken: Any) -> None:
        self._job = job
        self._ranges = ranges
        self._taken = taken
        self._wrong: list[str] = []

    def run(self, barrier: Any) -> dict[str, Any]:
        """Fetch until no range is left; return when it ended, the CPU time and what was wrong."""
        session = boto3.Session()
        config = Config(
            max_pool_connections=self._job["threads"],
            s3={"addressing_style": "path"},
            # Otherwise the body is wrapped in a checksum that copies it.
            response_checksum_validation="when_required",
        )
        client = session.client("s3", config=config)
        buffers = [touched_buffer(self._job["range_bytes"]) for _ in range(self._job["threads"])]
        threads = [
            threading.Thread(target=self._fetch_all, args=(client, buffer)) for buffer in buffers
        ]
        barrier.wait()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"ended": ended, "cpu_s": cpu_s, "wrong": self._wrong}

    def _fetch_all(self, client: Any, buffer: memoryview) -> None:
        while True:
            with self._taken.get_lock():
                number = self._taken.value
                self._taken.value += 1
            if number >= len(self._ranges):
                return
            wanted = self._ranges[number]
            try:
                self._fetch(client, wanted, buffer[: wanted.size])
            # A figure without these bytes would be a lie.
            except (BotoCoreError, ClientError, HTTPException, OSError) as error:
                self._wrong.append(f"{wanted}: {error!r}")
                return

    def _fetch(self, client: Any, wanted: Range, target: memoryview) -> None:
        answer = client.get_object(
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
        original = Path(self._job["originals"]) / wanted.key.rpartition("/")[2]
        with original.open("rb", buffering=0) as file:
            at = (wanted.start * 31 // 7) % max(1, wanted.size - SAMPLE_BYTES)
            sample = target[at : at + SAMPLE_BYTES].tobytes()
            file.seek(wanted.start + at)
            if file.read(len(sample)) != sample:
                self._wrong.append(f"{wanted}: other bytes")


def touched_buffer(size: int) -> memoryview:
    """Return memory that has been touched: a first touch costs more than the copy."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:: mmap.PAGESIZE] = b"\0" * (size // mmap.PAGESIZE)
    return memoryview(memory)


def cut(objects: list[dict[str, Any]], range_bytes: int) -> list[Range]:
    """Cut every object into ranges, in order."""
    return [
        Range(entry["key"], entry["etag"], start, min(range_bytes, entry["size"] - start))
        for entry in objects
        for start in range(0, entry["size"], range_bytes)
    ]


def _work(
    job: dict[str, Any],
    ranges: list[Range],
    taken: Any,
    barrier: Any,
    results: multiprocessing.connection.Connection,
) -> None:
    results.send(_Fetcher(job, ranges, taken).run(barrier))


def main() -> None:
    """Run the job, a JSON argument; the clock starts when every worker is ready."""
    job = json.loads(sys.argv[1])
    ranges = cut(job["objects"], job["range_bytes"])
    # Forked before there is any thread, so that boto3 is imported once.
    context = multiprocessing.get_context("fork")
    taken = context.Value("q", 0)
    barrier = context.Barrier(job["processes"] + 1)
    pipes, workers = [], []
    for _ in range(job["processes"]):
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(job, ranges, taken, barrier, sending), daemon=True
        )
        worker.start()
        sending.close()
        pipes.append(receiving)
        workers.append(worker)
    barrier.wait()
    started = time.monotonic()
    results = [pipe.recv() for pipe in pipes]
    for worker in workers:
        worker.join()
    json.dump(
        {
            "seconds": max(result["ended"] for result in results) - started,
            "bytes": sum(wanted.size for wanted in ranges),
            "cpu_s": sum(result["cpu_s"] for result in results),
            "wrong": [text for result in results for text in result["wrong"]][:5],
        },
        sys.stdout,
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
