"""`python -m tests.simulation --seed 1 --minutes 10`: seed after seed, until time is up."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from tests.simulation.run import simulate


def main() -> int:
    """Run seeds; 0 if all of them held. A seed that fails is told with its number and traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="the first one")
    parser.add_argument("--minutes", type=float, default=0.0, help="0 is one seed")
    wanted = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a store in trouble is what this is about
    began_s, seed = time.monotonic(), wanted.seed
    done: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    virtual_s = 0.0
    while True:
        outcome = simulate(seed)
        done.update(outcome.done)
        counters.update(outcome.counters)
        virtual_s += outcome.virtual_s
        seed += 1
        if time.monotonic() - began_s >= wanted.minutes * 60:
            break
    seeds, minutes = seed - wanted.seed, (time.monotonic() - began_s) / 60
    print(f"seeds {wanted.seed} to {seed - 1}: {seeds}, {seeds / minutes:.0f} a minute")
    print(f"virtual hours {virtual_s / 3600:.0f}")
    for table in (done, counters):
        print(", ".join(f"{name} {count}" for name, count in sorted(table.items()) if count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
