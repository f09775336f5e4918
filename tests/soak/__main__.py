"""`python -m tests.soak --cycles 1000 --minutes 30`: the long forms, with their figures."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.soak.cycles import MIB, run_cycles
from tests.soak.hours import run_soak

SECONDS_PER_STOP = 120.0


def main() -> int:
    """Run what was asked for; 0 if nothing was wrong or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--cycles", type=int, default=0, help="mount, load, unmount so often")
    parser.add_argument("--minutes", type=float, default=0.0, help="use one mount for so long")
    options = parser.parse_args()
    well = True
    if options.minutes:
        seconds = options.minutes * 60
        stops = max(2, int(seconds / SECONDS_PER_STOP))
        soak = run_soak(seconds, 60.0, stops, lambda report: _tell(report.lines()))
        well &= all(stop.fixed == soak.stops[0].fixed for stop in soak.stops)
    if options.cycles:
        with tempfile.TemporaryDirectory() as name:
            make_files(Path(name))
            cycles = run_cycles(options.cycles, Path(name))
        _tell(cycles.lines())
        well &= not cycles.left and not cycles.wrong
    return 0 if well else 1


def _tell(lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)


def make_files(plain: Path) -> None:
    """A small model's worth."""
    noise = random.Random(29)
    for name, size in (("a.safetensors", 9 * MIB), ("b.bin", 3 * MIB + 1), ("c.json", 100)):
        (plain / name).write_bytes(noise.randbytes(size))


if __name__ == "__main__":
    sys.exit(main())
