"""A store's ceiling: what its adapter fetches with no mount in between.

A program (`python -m tests.bench.store_raw JOB`, JOB as JSON: source, processes, threads,
range_bytes, originals). As `raw.py`, but through `Store.read_into`, which is what the mount's
workers call: so that what is compared is the mount, not the SDK. Prints a JSON result.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fusefs.config import Config
from fusefs.errors import FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Source, Store
from fusefs.store.source import open_store, parse_source, preload
from tests.bench.raw import SAMPLE_BYTES, touched_buffer

Range = tuple[ObjectMeta, Extent]


def main() -> None:
    """Run the job; the clock starts when every process is ready."""
    job = json.loads(sys.argv[1])
    source = parse_source(job["source"], Config())
    preload(source)
    ranges = _list_ranges(job, source)
    context = multiprocessing.get_context("fork")
    taken = context.Value("q", 0)
    barrier = context.Barrier(job["processes"] + 1)
    pipes = []
    workers = []
    for _ in range(job["processes"]):
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(job, source, ranges, taken, barrier, sending), daemon=True
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
    told = {
        "seconds": max(result["ended"] for result in results) - started,
        "bytes": sum(extent.size for _, extent in ranges),
        "cpu_s": sum(result["cpu_s"] for result in results),
        "wrong": [text for result in results for text in result["wrong"]][:5],
    }
    print(json.dumps(told), flush=True)
    os._exit(0)


def _list_ranges(job: dict[str, Any], source: Source) -> list[Range]:
    """Every weight file below the source, cut into ranges, in order."""
    # In a child, since connections and threads do not survive the forks that follow.
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_list, args=(source, sending), daemon=True)
    child.start()
    sending.close()
    objects: list[ObjectMeta] = receiving.recv()
    child.join()
    size = job["range_bytes"]
    return [
        (meta, Extent(start, min(start + size, meta.size)))
        for meta in objects
        for start in range(0, meta.size, size)
    ]


def _list(source: Source, sending: Any) -> None:
    store = open_store(source, Config())
    page = store.list_page(source.prefix, None)
    weights = [meta for meta in page.objects if meta.id.key.endswith(".safetensors")]
    sending.send(sorted(weights, key=lambda meta: meta.id.key))


def _work(
    job: dict[str, Any],
    source: Source,
    ranges: list[Range],
    taken: Any,
    barrier: Any,
    results: Any,
) -> None:
    store = open_store(source, Config())
    buffers = [touched_buffer(job["range_bytes"]) for _ in range(job["threads"])]
    wrong: list[str] = []

    def fetch_all(buffer: memoryview) -> None:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(ranges):
                return
            try:
                meta, extent = ranges[number]
                _fetch(store, meta, extent, buffer, Path(job["originals"]))
            except (FusefsError, AssertionError) as error:
                wrong.append(f"{ranges[number]}: {error!r}")
                return

    threads = [threading.Thread(target=fetch_all, args=(buffer,)) for buffer in buffers]
    barrier.wait()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results.send({"ended": ended, "cpu_s": cpu_s, "wrong": wrong})


def _fetch(
    store: Store, meta: ObjectMeta, extent: Extent, buffer: memoryview, originals: Path
) -> None:
    target = buffer[: extent.size]
    store.read_into(meta.id, extent, target)
    at = (extent.start * 31 // 7) % max(1, extent.size - SAMPLE_BYTES)
    sample = target[at : at + SAMPLE_BYTES].tobytes()
    with (originals / meta.id.key.rpartition("/")[2]).open("rb", buffering=0) as file:
        file.seek(extent.start + at)
        assert file.read(len(sample)) == sample, "other bytes"


if __name__ == "__main__":
    main()
