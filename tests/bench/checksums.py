"""What checksums cost: CPU seconds per GB of each CRC alone, and of ranges that are checked.

    python -m tests.bench.checksums [--rounds N]

Alone: pieces of 1 MiB that the CPU's cache still has (as after a receive), that it has not (512 MiB
in turn), and in memory that is touched for the first time. Checked: the S3 store reads ranges of
8 MiB of a SeaweedFS over loopback into recycled memory, in one thread, as a worker does; the kinds
take turns in each round, and the median of the rounds counts. Measures CPU, not time: other work on
the machine spoils the latter more.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fusefs.config import S3Config
from fusefs.engine.verifier import Verifier
from fusefs.objects import Checksums, Extent, ObjectId
from fusefs.policy.crc import CRC32, CRC32C, CRC64NVME, find_crc
from fusefs.store.s3 import S3Store
from tests.harness.weed import open_weed

MIB = 1 << 20
GB = 10**9
RANGE = 8 * MIB
OBJECT = 128 * MIB
COLD = 512 * MIB
KINDS = (CRC32, CRC32C, CRC64NVME)


class Known:
    """Checksums that are there without asking."""

    def __init__(self, sums: Checksums) -> None:
        self._sums = sums

    def find(self, id: ObjectId) -> Checksums:
        """Those."""
        return self._sums


def cpu_per_gb(work: Callable[[], int]) -> float:
    """CPU seconds of this process for each GB that `work` says it did."""
    began = time.process_time()
    done = work()
    return (time.process_time() - began) * GB / done


def measure_alone(compute: Callable[[memoryview], int]) -> tuple[float, float, float]:
    """Hot, cold, and fresh memory; of the last the touch itself is taken off."""
    piece = memoryview(bytearray(os.urandom(MIB)))

    def hot() -> int:
        for _ in range(512):
            compute(piece)
        return 512 * MIB

    with mmap.mmap(-1, COLD) as memory:
        view = memoryview(memory)

        def walk() -> int:
            for at in range(0, COLD, MIB):
                compute(view[at : at + MIB])
            return COLD

        fresh = cpu_per_gb(walk)
        for at in range(0, COLD, MIB):
            view[at : at + MIB] = piece
        cold = cpu_per_gb(walk)
        view.release()
    return cpu_per_gb(hot), cold, fresh


def sums_of(data: memoryview, kind: str, piece_bytes: int) -> Checksums:
    """The checksums of all pieces."""
    compute = find_crc(kind).compute
    starts = range(0, len(data), piece_bytes)
    stops = [min(start + piece_bytes, len(data)) for start in starts]
    values = [compute(data[a:b]) for a, b in zip(starts, stops, strict=True)]
    return Checksums(kind, stops, values)


def measure_reads(rounds: int) -> dict[str, list[float]]:
    """CPU per GB of ranges, by how they are checked, one figure for each round."""
    data = memoryview(os.urandom(OBJECT))
    plans = {
        "unchecked": None,
        "note of push (crc32, 1 MiB)": sums_of(data, CRC32, MIB),
        "parts (crc32c, 8 MiB)": sums_of(data, CRC32C, RANGE),
        "whole object (crc64nvme)": sums_of(data, CRC64NVME, OBJECT),
    }
    figures: dict[str, list[float]] = {name: [] for name in plans}
    with tempfile.TemporaryDirectory() as folder, open_weed(Path(folder)) as weed:
        os.environ.update(weed.environment)
        client: Any = weed.client()
        client.create_bucket(Bucket="checksums")
        client.put_object(Bucket="checksums", Key="weights", Body=data.tobytes())
        store = S3Store("checksums", S3Config(), 1)
        id = store.head("weights").id
        arena = memoryview(bytearray(RANGE))
        for _ in range(rounds):
            for name, sums in plans.items():
                figures[name].append(cpu_per_gb(partial(read_all, store, id, sums, arena)))
        store.close()
        client.close()
    return figures


def read_all(store: S3Store, id: ObjectId, sums: Checksums | None, arena: memoryview) -> int:
    """Read the object once, range by range."""
    verifier = Verifier(store, Known(sums), MIB, False) if sums else None
    for start in range(0, OBJECT, RANGE):
        extent = Extent(start, start + RANGE)
        if verifier is None:
            store.read_into(id, extent, arena, lambda landed: None)
        else:
            verifier.read_into(id, extent, arena, lambda landed, report: None)
    return OBJECT


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| CRC | hot s/GB | cold s/GB | fresh s/GB, page faults included |\n|---|---|---|---|")
    for kind in KINDS:
        rows = [measure_alone(find_crc(kind).compute) for _ in range(rounds)]
        print(
            f"| {kind} |",
            " | ".join(f"{statistics.median(c):.3f}" for c in zip(*rows, strict=True)),
            "|",
        )
    print("\n| ranges over loopback | s/GB | more than unchecked |\n|---|---|---|")
    figures = measure_reads(rounds)
    plain = figures["unchecked"]
    for name, values in figures.items():
        more = statistics.median(v - p for v, p in zip(values, plain, strict=True))
        print(f"| {name} | {statistics.median(values):.3f} | {more:+.3f} |")


if __name__ == "__main__":
    main()
