"""`python -m tests.bench`: models loaded through fusefs, its peers, and over the bare link.

Brings each origin up, runs interleaved rounds, prints tables and writes the samples as JSON and
plots. Knows no contestant and measures nothing itself. One idea: everything it starts and writes is
gone afterwards, also after Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.bench import contestants, machine
from tests.bench.content import Bucket, open_bucket
from tests.bench.contestants import Contestant, Programs, UnknownContestant, find_program, select
from tests.bench.options import Options, parse_options
from tests.bench.origin import OriginFailed, Shape, open_origin
from tests.bench.peers import PEERS
from tests.bench.plots import draw_all
from tests.bench.processes import ChildFailed
from tests.bench.report import Row, Sample, summarise, to_json
from tests.bench.rounds import Bench, Plan, calibrate, run_rounds
from tests.bench.scenarios import SCENARIOS
from tests.bench.tables import errors, tables
from tests.harness.weed import WeedFailed

MEMORY_FOLDER = Path("/dev/shm")


def main() -> int:
    """Run; 0 if every contestant has a figure, 1 if one has not, 2 on a wrong command line."""
    options = parse_options(sys.argv[1:])
    try:
        _plan(options, Programs("", None, None), None)
    except UnknownContestant as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if machine.memory_available_bytes() < options.memory_needed_bytes:
        print(f"bench: needs {options.memory_needed_bytes >> 20} MiB free", file=sys.stderr)
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
            return _run(options, Path(directory), Path(memory))
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except (ChildFailed, OriginFailed, UnknownContestant, WeedFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _run(options: Options, directory: Path, memory: Path) -> int:
    started = time.monotonic()
    wanted = tuple(dict.fromkeys(scenario.folder for scenario in options.scenarios))
    facts = _facts(options)
    samples: list[Sample] = []
    tried: list[Sample] = []
    with open_bucket(directory, memory, wanted, options.sizes) as bucket:
        _say(f"bucket full after {time.monotonic() - started:.0f} s")
        for shape in options.shapes:
            for sample in _run_origin(options, directory, memory, bucket, shape):
                (samples if sample.round else tried).append(sample)
                # A run that is cut short has still measured something.
                if options.json is not None:
                    report = to_json(samples, tried, _rows(samples), facts)
                    options.json.write_text(json.dumps(report, indent=1) + "\n")
    rows = _rows(samples)
    print(tables(rows, {scenario.name: scenario.title for scenario in SCENARIOS}))
    if options.plots is not None:
        draw_all(to_json(samples, tried, rows, facts), options.plots)
    failed = errors(rows)
    if failed:
        print(failed, file=sys.stderr)
    return 1 if failed else 0


def _run_origin(
    options: Options, directory: Path, memory: Path, bucket: Bucket, shape: Shape
) -> Iterator[Sample]:
    """Yield the samples of one origin; those of the calibration have round 0."""
    with open_origin(directory, bucket, shape) as origin:
        bench = Bench(origin, memory, limit_s=options.limit_s, say=_say)
        programs = Programs(
            endpoint=origin.endpoint,
            rclone=options.rclone or find_program("rclone"),
            s3fs=find_program("s3fs"),
            fusefs_options=options.fusefs_options,
        )
        raw: Contestant | None = None
        measured = [one for one in options.scenarios if contestants.RAW in one.names]
        if contestants.RAW in options.contestants and measured:
            raw, tried = calibrate(bench, measured[0])
            yield from tried
            _say(f"raw ceiling: {raw.label}")
        plan = _plan(options, programs, raw)
        _say(f"origin {shape.label}")
        yield from run_rounds(bench, plan, options.rounds, options.minutes * 60)


def _rows(samples: list[Sample]) -> tuple[Row, ...]:
    return summarise(samples, contestants.CEILINGS, PEERS)


def _facts(options: Options) -> dict[str, Any]:
    programs = {name: find_program(name) for name in ("s3fs", "nginx")}
    return {
        **machine.facts({**programs, "rclone": options.rclone or find_program("rclone")}),
        "parameters": options.given,
        "titles": {scenario.name: scenario.title for scenario in SCENARIOS},
    }


def _plan(options: Options, programs: Programs, raw: Contestant | None) -> Plan:
    """Return who takes part in which scenario; `raw` is what the name alone stands for."""
    plan = []
    for scenario in options.scenarios:
        takers: list[Contestant] = []
        for text in options.contestants:
            chosen = select(text, scenario.tuned_for, programs)
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


if __name__ == "__main__":
    sys.exit(main())
