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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import contestants
from tests.bench.contestants import Contestant
from tests.bench.mounts import Mounted, open_mount
from tests.bench.origin import BUCKET, PREFIX, Origin
from tests.bench.processes import ChildFailed, cpu_seconds, open_pss_sampler, run_limited
from tests.bench.report import Sample, summarise

TOUCH_BYTES_MIN = 3 << 30
TOUCH_LIMIT_S = 120.0
CALIBRATION_ROUNDS = 2
MARGIN_S = 120.0
"""What mounting, checking and unmounting may take beside the reader itself."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done to the mount: the reader's name, who takes part, whether memory is watched.

    Memory is watched in a run of its own: looking at it costs time.
    """

    name: str
    title: str
    reader: str
    names: tuple[str, ...] = contestants.NAMES
    watches_memory: bool = False


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("read", "cold read(), all shards in turn, 1 MiB, one thread", "read"),
    Scenario("mmap", "cold mmap load, safetensors + clone of every tensor", "mmap"),
    Scenario(
        "memory",
        "peak PSS during a cold read",
        "read",
        names=(contestants.FUSEFS,),
        watches_memory=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run needs: the origin, memory to work in, the limit of one reader (seconds)."""

    origin: Origin
    scratch: Path
    limit_s: float
    say: Callable[[str], None] = field(default=lambda text: None)

    def run(self, scenario: Scenario, contestant: Contestant, number: int) -> Sample:
        """Measure once. What fails in a contestant is a sample with an error, not an exception."""
        self._touch_memory()
        mark = self.origin.mark()
        before = time.monotonic()
        try:
            if contestant.raw is not None:
                told = self._run_raw(contestant)
            else:
                told = self._run_mounted(scenario, contestant)
            error = "; ".join(told["wrong"]) or None
            if error is None and told["bytes"] != self.origin.model_bytes:
                error = f"{told['bytes']} bytes arrived, the model has {self.origin.model_bytes}"
        except ChildFailed as failure:
            told, error = {}, str(failure)
        traffic = self.origin.traffic(mark, self.origin.mark())
        sample = Sample(
            scenario=scenario.name,
            contestant=contestant.name,
            label=contestant.label,
            round=number,
            seconds=told.get("seconds"),
            bytes=self.origin.model_bytes,
            error=error,
            cpu_s=told.get("cpu_s"),
            requests=traffic.requests,
            bytes_fetched=traffic.bytes,
            peak_pss_bytes=told.get("peak_pss_bytes"),
            memory_limit_bytes=told.get("memory_limit_bytes"),
            counters=told.get("counters", {}),
        )
        self.say(f"{sample.line()}  ({time.monotonic() - before:.1f} s in all)")
        return sample

    def _run_raw(self, contestant: Contestant) -> dict[str, Any]:
        setting = contestant.raw
        assert setting is not None
        job = {
            "bucket": BUCKET,
            "objects": [
                {"key": shard.key, "size": shard.size, "etag": shard.etag}
                for shard in self.origin.objects
            ],
            "originals": str(self.origin.originals),
            "processes": setting.processes,
            "threads": setting.threads,
            "range_bytes": setting.range_bytes,
        }
        command = [sys.executable, "-m", "tests.bench.raw", json.dumps(job)]
        told: dict[str, Any] = json.loads(
            run_limited(command, self.limit_s, lambda: None, self.origin.environment)
        )
        return told

    def _run_mounted(self, scenario: Scenario, contestant: Contestant) -> dict[str, Any]:
        how = contestant.mount
        assert how is not None
        environment = contestants.environment_of(self.origin.environment)
        with (
            open_mount(how, self.scratch, environment, self.limit_s + MARGIN_S) as mounted,
            contextlib.ExitStack() as stack,
        ):
            peak = None
            if scenario.watches_memory:
                peak = stack.enter_context(open_pss_sampler(mounted.pids))
            cpu_before = cpu_seconds(mounted.pids)
            told = self._run_reader(scenario, mounted)
            told["cpu_s"] = cpu_seconds(mounted.pids) - cpu_before
            status = mounted.status()
        told["counters"] = status.get("counters", {})
        told["memory_limit_bytes"] = status.get("memory_limit_bytes")
        if peak is not None:
            told["peak_pss_bytes"] = peak.peak_bytes
        return told

    def _run_reader(self, scenario: Scenario, mounted: Mounted) -> dict[str, Any]:
        names = [shard.key.removeprefix(PREFIX) for shard in self.origin.objects]
        command = [sys.executable, "-m", "tests.bench.readers", scenario.reader]
        command += [str(mounted.path / PREFIX), str(self.origin.originals), *names]
        told: dict[str, Any] = json.loads(run_limited(command, self.limit_s, mounted.abort))
        return told

    def _touch_memory(self) -> None:
        """Have the host give back what it took: as much as a round uses, in a child that ends."""
        size = max(TOUCH_BYTES_MIN, 2 * self.origin.model_bytes)
        command = [sys.executable, "-m", "tests.bench.touch", str(size)]
        run_limited(command, TOUCH_LIMIT_S, lambda: None)


def calibrate(bench: Bench) -> tuple[Contestant, tuple[Sample, ...]]:
    """Return the raw setting with the best median, and what each of them did in round 0.

    Raises `ChildFailed` if none works: then the origin does not.
    """
    scenario = SCENARIOS[0]
    tried = {
        name: Contestant(contestants.RAW, name, raw=setting)
        for name, setting in contestants.RAW_VARIANTS.items()
    }
    samples = [
        bench.run(scenario, contestant, 0)
        for _ in range(CALIBRATION_ROUNDS)
        for contestant in tried.values()
    ]
    rows = summarise(samples, contestants.RAW, ())
    speeds = {row.label: row.median_gb_per_s for row in rows if row.median_gb_per_s is not None}
    if not speeds:
        raise ChildFailed(f"the raw fetch fails: {samples[0].error}")
    best = max(tried.values(), key=lambda contestant: speeds.get(contestant.label, 0.0))
    return best, tuple(samples)


def run_rounds(
    bench: Bench, plan: tuple[tuple[Scenario, tuple[Contestant, ...]], ...], rounds: int
) -> Iterator[Sample]:
    """Yield one sample per round, scenario and contestant; every other round in reverse order.

    Reversed, so that what one contestant leaves behind does not always hit the same other one.
    """
    for number in range(1, rounds + 1):
        bench.say(f"round {number} of {rounds}")
        for scenario, takers in plan:
            for contestant in takers if number % 2 else reversed(takers):
                yield bench.run(scenario, contestant, number)
