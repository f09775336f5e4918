"""All faults, some at a time, over one real server; and the table of what became of them."""

from __future__ import annotations

import random
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.faults.apart import run_apart
from tests.faults.chain import Shop, open_bucket
from tests.faults.elsewhere import open_shops
from tests.faults.faults import Fault
from tests.faults.model import Model, describe
from tests.faults.outcome import Outcome
from tests.faults.scene import run_fault
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
    shops: Mapping[str, Shop]

    def new_folder(self, fault: Fault) -> Path:
        """A folder for one run; its name is good for a bucket."""
        folder = self.folder / f"{fault.name}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        return folder


@contextmanager
def open_place(faults: Sequence[Fault]) -> Iterator[Place]:
    """The servers that these faults need, and a model: shards, an opaque file, small files."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        root = Path(name)
        # float16: of bfloat16 numpy knows nothing, and readers without torch start sooner.
        make_model(root / "model", SHARDS, SHARD_BYTES, torch.float16)
        (root / "model" / "plain.dat").write_bytes(random.Random(5).randbytes(PLAIN_BYTES))
        model = describe(root / "model")
        schemes = sorted({fault.scheme for fault in faults} - {"s3"})
        with open_weed(root / "weed") as weed, open_shops(schemes, model, root) as shops:
            yield Place(weed, model, root / "runs", shops)


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
        folder = place.new_folder(fault)
        if fault.by_name:
            return run_apart(fault, place.weed, place.model, folder, lasts_s)
        if fault.scheme == "s3":
            shop = open_bucket(place.weed, folder.name, place.model, folder)
        else:
            shop = place.shops[fault.scheme]
        return run_fault(fault, shop, place.model, folder, lasts_s)
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
