"""A mount and the directory behind it, side by side: `python -m tests.posix.differential`.

python -m tests.posix.differential [--examples 2000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.harness.mounted import open_mount
from tests.posix.machine import Asked, Machine, Roots

OPTIONS = ("--memory", "16M", "--set", "tree.ttl_s=0", "--set", "tree.negative_ttl_s=0")
STEPS = 40


def compare(examples: int, limit_s: float, derandomize: bool) -> Roots:
    """Play `examples` histories of `STEPS` calls. AssertionError where the answers differ."""
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name) / "plain"
        (plain / "sub" / "deep").mkdir(parents=True)
        source = f"file://{plain}"
        with open_mount(source, *OPTIONS, warnings_expected=True, limit_s=limit_s) as mounted:
            roots = Roots(plain, Asked(mounted.path, Path(name)), Asked(plain, Path(name)))

            class Bound(Machine):
                """The rules, on these two roots."""

            Bound.roots = roots
            wanted = settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=derandomize,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            try:
                run_state_machine_as_test(Bound, settings=wanted)
            finally:
                roots.mounted.end()
                roots.reference.end()
        roots.mounted.wait()
    return roots


def main() -> int:
    """As many as wanted; 0 if there was no difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.posix.differential")
    parser.add_argument("--examples", type=int, default=2000)
    roots = compare(parser.parse_args().examples, limit_s=6 * 3600.0, derandomize=False)
    print(f"{sum(roots.made.values())} calls, {roots.versions} versions, {roots.estale} ESTALE")
    print(", ".join(f"{name} {count}" for name, count in sorted(roots.made.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
