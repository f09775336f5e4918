"""`python -m tests.stress --seconds 600`: the stress for as long as wanted, with its figures."""

from __future__ import annotations

import argparse
import sys

from tests.stress.run import run_stress


def main() -> int:
    """Run it; 0 if every byte was right and nobody was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress")
    parser.add_argument("--seconds", type=int, default=600)
    report = run_stress(parser.parse_args().seconds)
    print("\n".join(report.lines()))
    return 0 if report.wrong == report.killed == report.counters["read_errors"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
