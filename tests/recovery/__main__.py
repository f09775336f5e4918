"""`python -m tests.recovery --times 100`: kills for as long as wanted, with a table of pauses."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.harness.weed import open_weed
from tests.recovery.run import make_plain, run_kills
from tests.recovery.upload import upload


def main() -> int:
    """Run it; 0 if nobody got an error or a wrong byte."""
    parser = argparse.ArgumentParser(prog="python -m tests.recovery")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", choices=("file", "s3"), default="s3")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name) / "plain"
        plain.mkdir()
        make_plain(plain)
        if arguments.source == "file":
            report = run_kills(plain, f"file://{plain}", arguments.times, arguments.seed)
        else:
            with open_weed(Path(name)) as weed:
                source = f"s3://{upload(weed, plain)}"
                report = run_kills(plain, source, arguments.times, arguments.seed, weed.environment)
    print("\n".join(report.lines()))
    return 1 if report.complaints or report.read_errors else 0


if __name__ == "__main__":
    sys.exit(main())
