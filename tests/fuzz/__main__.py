"""`python -m tests.fuzz TARGET --minutes 10`: coverage-guided fuzzing of one target, by atheris.

    python -m tests.fuzz --list
    python -m tests.fuzz all --minutes 10
    python -m tests.fuzz TARGET --input FILE        what was found, once more

Needs `pip install -e '.[fuzz]'`. The fuzzer runs in a process of its own whose address space is
bounded, so that an input that takes memory without bound is found like one that raises. It begins
with the seeds that the target makes, and ends at the first finding.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.harness.mounted import ROOT

GRACE_S = 600.0
"""For the start, which takes minutes on a busy machine, and for the input at hand at the end."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the fuzzer says at its end."""

    target: str
    executions: int
    coverage: int
    peak_mib: int
    status: int
    log: str

    def __str__(self) -> str:
        found = "nothing found" if self.status == 0 else f"FOUND something (exit {self.status})"
        return (
            f"{self.target:<12} {self.executions:>10} executions, {self.coverage:>5} edges,"
            f" {self.peak_mib:>4} MiB at most: {found}"
        )


def fuzz(target: str, seconds: int, folder: Path) -> Result:
    """Fuzz one target for so long; findings are left in `folder`."""
    corpus = folder / f"corpus-{target}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(TARGETS[target].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.child", target, str(seconds), str(corpus), f"{folder}/"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + GRACE_S,
        check=False,
    )
    edges = re.findall(r"\bcov: (\d+)", done.stdout)
    return Result(
        target,
        _figure("number_of_executed_units", done.stdout),
        int(edges[-1]) if edges else 0,
        _figure("peak_rss_mb", done.stdout),
        done.returncode,
        done.stdout,
    )


def _figure(name: str, log: str) -> int:
    found = re.search(rf"stat::{name}:\s*(\d+)", log)
    return int(found[1]) if found else 0


def main() -> int:
    """Fuzz; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--list", action="store_true", help="tell what there is to fuzz")
    parser.add_argument("--input", type=Path, help="run one input, once")
    wanted = parser.parse_args()
    if wanted.list:
        for name, target in TARGETS.items():
            print(f"{name:<12} {(target.run.__doc__ or '').splitlines()[0]}")
        return 0
    if wanted.input is not None:
        TARGETS[wanted.target].run(wanted.input.read_bytes())
        return 0
    status = 0
    for name in TARGETS if wanted.target == "all" else [wanted.target]:
        folder = Path(tempfile.mkdtemp(prefix=f"fusefs-fuzz-{name}-"))
        result = fuzz(name, round(wanted.minutes * 60), folder)
        print(result, flush=True)
        if result.status != 0:
            status = 1
            print(result.log[-4000:])
            print(f"inputs are in {folder}: python -m tests.fuzz {name} --input FILE")
    return status


if __name__ == "__main__":
    sys.exit(main())
