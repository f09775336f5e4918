"""`python -m tests.faults`: every fault, as often as wanted, and the table of what happened."""

from __future__ import annotations

import argparse
import sys
import time

from tests.faults.faults import BY_NAME
from tests.faults.outcome import Outcome
from tests.faults.suite import LANES, open_place, run_all, table


def main() -> int:
    """Run them; 0 if everything went as documented."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--rounds", type=int, default=1, help="at least so many")
    parser.add_argument("--minutes", type=float, default=0.0, help="rounds begin for so long")
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), metavar="FAULT")
    parser.add_argument("--long", action="store_true", help="outages of a minute")
    parser.add_argument("--lanes", type=int, default=LANES, help="runs side by side")
    options = parser.parse_args()
    faults = [fault for fault in BY_NAME.values() if not options.only or fault.name in options.only]
    totals = {fault.name: Outcome(fault) for fault in faults}
    began_s, rounds, complaints = time.monotonic(), 0, 0
    with open_place(faults) as place:
        while rounds < options.rounds or time.monotonic() - began_s < 60 * options.minutes:
            rounds += 1
            for outcome in run_all(faults, place, options.long, options.lanes):
                totals[outcome.fault.name].add(outcome)
                wrong = outcome.complaints()
                complaints += bool(wrong)
                print(f"{rounds}: {outcome.fault.name}: {'; '.join(wrong) or 'as documented'}")
                sys.stdout.flush()
    print(f"\n{rounds} rounds in {(time.monotonic() - began_s) / 60:.1f} min\n")
    print("\n".join(table(list(totals.values()))))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
