"""A store's ceiling: what its adapter fetches with no mount in between.

A program (`python -m tests.bench.store_raw JOB`, JOB as JSON: source, processes, threads,
range_bytes, originals). As `raw.py`, but through `Store.read_into`, which is what the mount's
workers call: so that what is compared is the mount, not the SDK. Prints a JSON result.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from fusefs.config import Config
from fusefs.errors import FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Source, Store
from fusefs.store.source import open_store, parse_source, preload
from tests.bench.race import Fetch, race
from tests.bench.raw import same_sample

Range = tuple[ObjectMeta, Extent]


def main() -> None:
    """Run the job."""
    job = json.loads(sys.argv[1])
    source = parse_source(job["source"], Config())
    preload(source)
    ranges = _list_ranges(job, source)
    originals = Path(job["originals"])

    def open_fetch() -> Fetch:
        store = open_store(source, Config())
        return lambda number, target: _fetch(store, *ranges[number], target, originals)

    race(open_fetch, [extent.size for _, extent in ranges], job["processes"], job["threads"])


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


def _fetch(
    store: Store, meta: ObjectMeta, extent: Extent, target: memoryview, originals: Path
) -> str | None:
    try:
        store.read_into(meta.id, extent, target)
    except FusefsError as error:
        return f"{meta.id} {extent}: {error!r}"
    original = originals / meta.id.key.rpartition("/")[2]
    return None if same_sample(original, extent.start, target) else f"{meta.id} {extent}: other"


if __name__ == "__main__":
    main()
