"""Interleaved rounds: every contestant once per round, each on a fresh mount and warm memory.

One idea: on a shared machine only figures taken within the same minute can be compared, so rounds
go contestant by contestant and what is compared are ratios within a round.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.bench.content import BUCKET, Folder
from tests.bench.contestants import RAW, RAW_VARIANTS, RUNAI, Contestant
from tests.bench.job import Job
from tests.bench.mounts import Mounted, open_mount
from tests.bench.origin import Origin
from tests.bench.peers import environment_of
from tests.bench.processes import (
    ChildFailed,
    cpu_seconds,
    open_pss_sampler,
    pss_bytes,
    run_limited,
)
from tests.bench.report import SPEEDS, Sample, summarise
from tests.bench.scenarios import Scenario

TOUCH_BYTES_MIN = 1 << 30
"""A mount's buffers and a loader; the model comes on top, twice."""
TOUCH_LIMIT_S = 120.0
CALIBRATION_ROUNDS = 2
MARGIN_S = 120.0
"""What mounting, checking and unmounting may take beside the reader itself."""

Plan = tuple[tuple[Scenario, tuple[Contestant, ...]], ...]
"""Who takes part in what, in the order of the first round."""


class Runner(Protocol):
    """Measures once and talks about it."""

    @property
    def say(self) -> Callable[[str], None]:
        """Where to tell what goes on."""

    def run(self, scenario: Scenario, contestant: Contestant, number: int) -> Sample:
        """Return the sample of one contestant in round `number`."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run needs: the origin, memory to work in, the limit of one reader (seconds)."""

    origin: Origin
    scratch: Path
    limit_s: float
    say: Callable[[str], None] = field(default=lambda text: None)

    def run(self, scenario: Scenario, contestant: Contestant, number: int) -> Sample:
        """Measure once. What fails in a contestant is a sample with an error, not an exception."""
        folder = self.origin.bucket.folders[scenario.folder]
        if scenario.unit in SPEEDS:
            self._touch_memory(folder)
        mark = self.origin.mark()
        before = time.monotonic()
        error: str | None
        try:
            told = self._measure(scenario, contestant, number, folder)
            error = "; ".join(told["wrong"]) or None
        except ChildFailed as failure:
            told, error = {}, str(failure)
        traffic = self.origin.traffic(mark, self.origin.mark())
        extra: dict[str, float] = dict(told.get("extra", {}))
        if "again_ms" in extra:
            extra["again_requests"] = traffic.again_requests
        size = told.get("bytes", 0)
        sample = Sample(
            scenario=scenario.name,
            unit=scenario.unit,
            origin=self.origin.shape.label,
            contestant=contestant.name,
            label=contestant.label,
            round=number,
            seconds=told.get("seconds"),
            bytes=size,
            wanted_bytes=told.get("wanted_bytes", size),
            files=len(folder.objects),
            error=error,
            cpu_s=told.get("cpu_s"),
            reader_cpu_s=told.get("reader_cpu_s"),
            requests=traffic.requests - traffic.again_requests,
            bytes_fetched=traffic.bytes,
            pss_bytes=told.get("pss_bytes"),
            memory_limit_bytes=told.get("memory_limit_bytes"),
            counters=told.get("counters", {}),
            extra=extra,
        )
        self.say(f"{sample.line()}  ({time.monotonic() - before:.1f} s in all)")
        return sample

    def _measure(
        self, scenario: Scenario, contestant: Contestant, number: int, folder: Folder
    ) -> dict[str, Any]:
        """Run the contestant. Raises `ChildFailed`."""
        if contestant.raw is not None:
            return self._run_raw(contestant, folder)
        if contestant.mount is not None:
            return self._run_mounted(scenario, contestant, number, folder)
        streams = contestant.name == RUNAI
        reader = "stream" if streams else scenario.reader
        job = self._job(scenario, folder.originals, number, folder)
        environment = environment_of(RUNAI, self.origin.environment) if streams else {}
        return self._run_reader(reader, job, lambda: None, environment)

    def _run_raw(self, contestant: Contestant, folder: Folder) -> dict[str, Any]:
        setting = contestant.raw
        assert setting is not None
        job = {
            "bucket": BUCKET,
            "objects": [asdict(entry) for entry in folder.objects],
            "originals": str(folder.originals),
            "processes": setting.processes,
            "threads": setting.threads,
            "range_bytes": setting.range_bytes,
        }
        command = [sys.executable, "-m", "tests.bench.raw", json.dumps(job)]
        told: dict[str, Any] = json.loads(
            run_limited(command, self.limit_s, lambda: None, self.origin.environment)
        )
        return told

    def _run_mounted(
        self, scenario: Scenario, contestant: Contestant, number: int, folder: Folder
    ) -> dict[str, Any]:
        how = contestant.mount
        assert how is not None
        environment = environment_of(contestant.name, self.origin.environment)
        with (
            open_mount(how, self.scratch, environment, self.limit_s + MARGIN_S) as mounted,
            contextlib.ExitStack() as stack,
        ):
            peak = None
            if scenario.watches_memory:
                peak = stack.enter_context(open_pss_sampler(mounted.pids))
            cpu_before = cpu_seconds(mounted.pids)
            told = self._read_mounted(scenario, mounted, number, folder)
            told["cpu_s"] = cpu_seconds(mounted.pids) - cpu_before
            # Outside the clock: one look, right after the load, costs nobody anything.
            told["pss_bytes"] = pss_bytes(mounted.pids)
            status = mounted.status()
        told["counters"] = status.get("counters", {})
        told["memory_limit_bytes"] = status.get("memory_limit_bytes")
        if peak is not None:
            told["pss_bytes"] = max(told["pss_bytes"], peak.peak_bytes)
        return told

    def _read_mounted(
        self, scenario: Scenario, mounted: Mounted, number: int, folder: Folder
    ) -> dict[str, Any]:
        job = self._job(scenario, mounted.path / folder.prefix, number, folder)
        return self._run_reader(scenario.reader, job, mounted.abort, {})

    def _job(self, scenario: Scenario, directory: Path, number: int, folder: Folder) -> Job:
        return Job(
            directory=str(directory),
            originals=str(folder.originals),
            url=f"s3://{BUCKET}/{folder.prefix}",
            names=list(folder.names),
            marks=self.origin.marks,
            seed=number,
            ranks=scenario.ranks,
        )

    def _run_reader(
        self, reader: str, job: Job, unstick: Callable[[], None], environment: dict[str, str]
    ) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.bench.application", reader, json.dumps(asdict(job))]
        # Nobody asks a hub for anything.
        environment = {**environment, "HF_HUB_OFFLINE": "1"}
        told: dict[str, Any] = json.loads(run_limited(command, self.limit_s, unstick, environment))
        return told

    def _touch_memory(self, folder: Folder) -> None:
        """Have the host give back what it took: as much as a round uses, in a child that ends."""
        size = TOUCH_BYTES_MIN + 2 * folder.size_bytes
        command = [sys.executable, "-m", "tests.bench.touch", str(size)]
        run_limited(command, TOUCH_LIMIT_S, lambda: None)


def calibrate(bench: Runner, scenario: Scenario) -> tuple[Contestant, tuple[Sample, ...]]:
    """Return the raw setting with the best median, and what each of them did in round 0.

    Raises `ChildFailed` if none works: then the origin does not.
    """
    tried = {name: Contestant(RAW, name, raw=setting) for name, setting in RAW_VARIANTS.items()}
    samples = [
        bench.run(scenario, contestant, 0)
        for _ in range(CALIBRATION_ROUNDS)
        for contestant in tried.values()
    ]
    rows = summarise(samples, (RAW,), ())
    speeds = {row.label: row.median for row in rows if row.median is not None}
    if not speeds:
        raise ChildFailed(f"the raw fetch fails: {samples[0].error}")
    best = max(tried.values(), key=lambda contestant: speeds.get(contestant.label, 0.0))
    return best, tuple(samples)


def run_rounds(
    bench: Runner,
    plan: Plan,
    rounds: int,
    limit_s: float,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Sample]:
    """Yield one sample per round, scenario and contestant; every other round in reverse order.

    Reversed, so that what one contestant leaves behind does not always hit the same other one. No
    round begins that would end after `limit_s` if it took as long as the one before.
    """
    started = now()
    for number in range(1, rounds + 1):
        begun = now()
        bench.say(f"round {number} of {rounds}")
        for scenario, takers in plan:
            for contestant in takers if number % 2 else reversed(takers):
                yield bench.run(scenario, contestant, number)
        took_s = now() - begun
        if number < rounds and now() - started + took_s > limit_s:
            bench.say(f"no time for round {number + 1}: one takes {took_s:.0f} s")
            return
