"""`python -m tests.bench`: the table of cold loads through fusefs, its peers, and the bare link.

Brings the origin up, runs interleaved rounds, prints the table and writes the samples as JSON.
Knows no contestant and measures nothing itself. One idea: everything it starts and writes is gone
afterwards, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.bench import contestants, machine
from tests.bench.contestants import Contestant, Programs, UnknownContestant, find_program
from tests.bench.origin import OriginFailed, Shape, open_origin
from tests.bench.processes import ChildFailed
from tests.bench.report import Sample, errors, summarise, table, to_json
from tests.bench.rounds import SCENARIOS, Bench, Scenario, calibrate, run_rounds
from tests.harness.weed import WeedFailed

MEMORY_FOLDER = Path("/dev/shm")
COPIES = 5
"""Of the model in memory at once: the origin's, a peer's cache, the page cache of the mount, the
loaded tensors, and fusefs' arena or the upload's page cache."""


def main() -> int:
    """Run; 0 if every contestant has a figure, 1 if one has not, 2 on a wrong command line."""
    options = _options()
    try:
        scenarios = _scenarios(options.only)
        _plan(scenarios, options.contestants, Programs("", None, None), None)
    except UnknownContestant as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    needed = COPIES * options.shards * (options.shard_mb << 20)
    if machine.memory_available_bytes() < needed:
        print(f"bench: needs {needed >> 20} MiB of free memory", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as directory,
            tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY_FOLDER) as memory,
        ):
            # nginx and the mounts' daemons may run as somebody else.
            Path(memory).chmod(0o755)
            return _run(options, scenarios, Path(directory), Path(memory))
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except (ChildFailed, OriginFailed, UnknownContestant, WeedFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _run(
    options: argparse.Namespace, scenarios: tuple[Scenario, ...], directory: Path, memory: Path
) -> int:
    shape = Shape(rate_mb=options.rate_mb, ttfb_ms=options.ttfb_ms)
    started = time.monotonic()
    with open_origin(directory, memory, shape, options.shards, options.shard_mb << 20) as origin:
        _say(f"origin up after {time.monotonic() - started:.0f} s: {origin.model_bytes} bytes")
        programs = Programs(
            endpoint=origin.endpoint,
            rclone=options.rclone or find_program("rclone"),
            s3fs=find_program("s3fs"),
            fusefs_options=tuple(options.fusefs_option),
        )
        bench = Bench(origin, memory, limit_s=options.limit_s, say=_say)
        raw: Contestant | None = None
        tried: tuple[Sample, ...] = ()
        if contestants.RAW in options.contestants.split(","):
            raw, tried = calibrate(bench)
            _say(f"raw ceiling: {raw.label}")
        plan = _plan(scenarios, options.contestants, programs, raw)
        samples = tuple(run_rounds(bench, plan, options.rounds))
    rows = summarise(samples, contestants.RAW, contestants.PEERS)
    print(table(rows))
    if any(row.error for row in rows):
        print(errors(rows), file=sys.stderr)
    if options.json:
        report = _report(options, programs, samples, tried)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(row.error for row in rows) else 0


def _report(
    options: argparse.Namespace,
    programs: Programs,
    samples: tuple[Sample, ...],
    tried: tuple[Sample, ...],
) -> dict[str, Any]:
    """Return the JSON report."""
    rows = summarise(samples, contestants.RAW, contestants.PEERS)
    found = {"rclone": programs.rclone, "s3fs": programs.s3fs, "nginx": find_program("nginx")}
    given = {name: str(value) for name, value in vars(options).items()}
    labels = sorted({sample.label for sample in samples})
    facts = {
        **machine.facts(found),
        "parameters": given,
        "contestants": labels,
        "calibration": [asdict(sample) for sample in tried],
    }
    return to_json(samples, rows, facts)


def _scenarios(only: str | None) -> tuple[Scenario, ...]:
    """Return the scenarios named, all without a name. Raises `UnknownContestant`."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    names = only.split(",") if only else list(known)
    for name in names:
        if name not in known:
            raise UnknownContestant(f"unknown scenario {name!r}: one of {', '.join(known)}")
    return tuple(known[name] for name in names)


def _plan(
    scenarios: tuple[Scenario, ...], wanted: str, programs: Programs, raw: Contestant | None
) -> tuple[tuple[Scenario, tuple[Contestant, ...]], ...]:
    """Return who takes part in which scenario; `raw` is what the name alone stands for."""
    plan = []
    for scenario in scenarios:
        takers: list[Contestant] = []
        for text in wanted.split(","):
            chosen = contestants.select(text, scenario.reader, programs)
            if text == contestants.RAW and raw is not None:
                chosen = (raw,)
            takers += [taker for taker in chosen if taker.name in scenario.names]
        plan.append((scenario, tuple(takers)))
    return tuple(plan)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the run in order; a second Ctrl-C must not cut the cleaning short, it is bounded."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = ",".join(contestants.NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-mb", type=int, default=600, help="MiB of tensors in each shard")
    parser.add_argument("--rate-mb", type=int, default=80, help="MiB/s of one connection")
    parser.add_argument("--ttfb-ms", type=float, default=25.0, help="until the first byte")
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--only", help="scenarios, by comma: read,mmap,memory")
    parser.add_argument("--contestants", default=names, help=f"{names}; PEER:VARIANT, PEER:*")
    parser.add_argument("--rclone", help="another rclone than the one found")
    parser.add_argument("--fusefs-option", action="append", default=[], help="e.g. --memory=1G")
    parser.add_argument("--limit-s", type=float, default=300.0, help="for one reader")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
