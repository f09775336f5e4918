"""One run of a fault in a mount namespace of its own, where names are resolved as it wants.

    python -m tests.faults.apart FAULT LASTS_S MODEL FOLDER WEED

WEED is the JSON of a running server. The last line of the output is the outcome as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tests.faults.chain import open_bucket
from tests.faults.faults import BY_NAME, Fault
from tests.faults.model import Model, describe
from tests.faults.outcome import Outcome
from tests.faults.resolver import open_resolver
from tests.faults.scene import run_fault
from tests.harness.mounted import ROOT
from tests.harness.weed import Weed

# Slave: what is unmounted outside is unmounted here as well, and nobody's mount is kept busy.
NAMESPACE = ["unshare", "--mount", "--propagation", "slave", "--"]


def run_apart(
    fault: Fault, weed: Weed, model: Model, folder: Path, lasts_s: float | None
) -> Outcome:
    """Like `run_fault`. Raises AssertionError with what was said if that fails."""
    server = {**asdict(weed), "directory": str(weed.directory)}
    arguments = [fault.name, str(lasts_s or 0.0), str(model.folder), str(folder)]
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", __name__, *arguments, json.dumps(server)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    values["became"] = Counter(values["became"])
    return Outcome(fault, **values)


def main(name: str, lasts_s: str, model: str, folder: str, server: str) -> None:
    """Run it here."""
    told = json.loads(server)
    weed = Weed(told["endpoint"], Path(told["directory"]), told["pid"], tuple(told["ports"]))
    scratch, described = Path(folder), describe(Path(model))
    shop = open_bucket(weed, scratch.name, described, scratch)
    with open_resolver(scratch) as resolver:
        lasts = float(lasts_s) or None
        outcome = run_fault(BY_NAME[name], shop, described, scratch, lasts, resolver)
    values = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    del values["fault"]
    print(json.dumps(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
