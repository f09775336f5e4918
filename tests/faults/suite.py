"""All faults, some at a time, over one real server; and the table of what became of them."""

from __future__ import annotations

import random
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.faults.faults import Fault
from tests.faults.scene import Model, Outcome, describe, run_fault
from tests.harness.model import make_model
from tests.harness.weed import Weed, open_weed

LANES = 4
"""Runs side by side: nearly all of each is waiting. A run costs some 4 s of a core."""

SHARDS = 2
SHARD_BYTES = 5 << 20
PLAIN_BYTES = 3 << 20
"""A load of 13 MB takes 2 s at the link's rate: long enough for faults to strike in its middle."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where faults run."""

    weed: Weed
    model: Model
    folder: Path


@contextmanager
def open_place() -> Iterator[Place]:
    """A server, and a model to publish on it: shards, an opaque file, small files."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        root = Path(name)
        # float16: of bfloat16 numpy knows nothing, and readers without torch start sooner.
        make_model(root / "model", SHARDS, SHARD_BYTES, torch.float16)
        (root / "model" / "plain.dat").write_bytes(random.Random(5).randbytes(PLAIN_BYTES))
        with open_weed(root / "weed") as weed:
            yield Place(weed, describe(root / "model"), root / "runs")


def run_all(
    faults: Sequence[Fault], place: Place, is_long: bool = False, lanes: int = LANES
) -> Iterator[Outcome]:
    """Each fault once, several at a time, in the order in which they end.

    A run that breaks off is an outcome with the failure among its notes.
    """
    with ThreadPoolExecutor(lanes) as pool:
        # Those that take long come first: the others fill the gaps.
        ordered = sorted(faults, key=lambda fault: -(fault.lasts_s or fault.deadline_s))
        futures = [pool.submit(_run, fault, place, is_long) for fault in ordered]
        for future in as_completed(futures):
            yield future.result()


def _run(fault: Fault, place: Place, is_long: bool) -> Outcome:
    lasts_s = fault.long_s if is_long and fault.long_s else fault.lasts_s
    try:
        return run_fault(fault, place.weed, place.model, place.folder, lasts_s)
    except Exception:  # noqa: BLE001 - a failed run is a row of the table, with its traceback
        failed = Outcome(fault, recovered=False)
        failed.notes.append(traceback.format_exc())
        return failed


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """For people, and for docs/operations.md."""
    lines = [
        "| fault | injected | loads | files byte-exact | documented errors | wrong | hung"
        " | longest pause | recovered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        became = outcome.became
        errors = sum(n for kind, n in became.items() if kind not in ("exact", "wrong", "hung"))
        kinds = ", ".join(sorted(k for k in became if k not in ("exact", "wrong", "hung")))
        cells = [
            outcome.fault.name,
            outcome.struck,
            outcome.loads,
            became["exact"],
            f"{errors} ({kinds})" if errors else "0",
            became["wrong"],
            became["hung"],
            f"{outcome.longest_s:.1f} s",
            "yes" if outcome.recovered else "NO",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
