"""One mount, used for long by everybody at once: after each stretch all gauges are back.

The one idea: work stops now and then, the kernel is asked to forget what it knows, and then the
mount must be as it was: no handle, stream, pin or connection of a peer, each descriptor accounted
for, and memory on a level line.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import open_weed
from tests.soak.footprint import Footprint, footprint, slope
from tests.soak.traffic import CHANGING, CHANGING_BYTES, Gate, Traffic

MIB = 1 << 20
SIZES = {
    "model-00001-of-00002.safetensors": 24 * MIB + 5,
    "model-00002-of-00002.safetensors": 9 * MIB,
    "weights.bin": 17 * MIB + 4097,
    "config.json": 700,
    "tokenizer.json": 2 * MIB,
}
OPTIONS = ("--memory", "48M", "--set", "engine.connections=16", "--set", "tree.ttl_s=2")
"""Little memory: blocks come and go. Sixteen connections: their threads are there soon. Names are
believed for two seconds: listings are asked for again and again."""

SETTLE_WITHIN_S = 60.0
"""Requests under way, and blocks nobody came for, end within half a minute."""

ZERO = ("files", "handles", "directories")


@dataclass(slots=True)
class Report:
    """What was seen at each stop. `work` is how often each thing was done."""

    seconds: float = 0.0
    stops: list[Footprint] = field(default_factory=list)
    work: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_per_hour(self) -> float:
        """How fast the memory of all processes grows: a line through the stops."""
        stretch_s = self.seconds / max(1, len(self.stops) - 1)
        return slope([stop.bytes for stop in self.stops]) * 3600 / max(1.0, stretch_s)

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.stops[0], self.stops[-1]
        return [
            f"soaked            {self.seconds:.0f} s with {len(self.stops)} stops",
            f"done              {self.work}",
            f"fixed, first      {first.fixed}",
            f"fixed, last       {last.fixed}",
            f"connections       {[stop.connections for stop in self.stops]}",
            f"fetch threads     {[stop.fetch_threads for stop in self.stops]}",
            f"memory, MiB       {[round(stop.bytes / MIB, 1) for stop in self.stops]},"
            f" {self.bytes_per_hour / MIB:+.2f} an hour",
            f"counters          { {k: v for k, v in self.counters.items() if v} }",
        ]


def run_soak(
    seconds: float, warm_s: float, stops: int, tell: Callable[[Report], None] = lambda _: None
) -> Report:
    """Soak a mount for so long after warming it up, with so many stops behind the first.

    `tell` gets what is known at each of them.
    """
    noise = random.Random(23)
    expected = {name: noise.randbytes(size) for name, size in SIZES.items()}
    with tempfile.TemporaryDirectory() as name, open_weed(Path(name)) as weed:
        client = weed.client()
        client.create_bucket(Bucket="soak")
        for key, body in {**expected, CHANGING: bytes(CHANGING_BYTES)}.items():
            client.put_object(Bucket="soak", Key=key, Body=body)
        with open_mount(
            "s3://soak",
            *OPTIONS,
            environment=weed.environment,
            limit_s=warm_s + seconds + SETTLE_WITHIN_S * (stops + 2),
            warnings_expected=True,
        ) as mounted:
            traffic = Traffic(mounted.path, expected, client, "soak")
            return _soak(mounted, traffic, [warm_s, *[seconds / stops] * stops], tell)


def _soak(
    mounted: Mounted,
    traffic: Traffic,
    stretches: list[float],
    tell: Callable[[Report], None],
) -> Report:
    """Work for each stretch of seconds, and stop behind it."""
    gate = Gate()
    works = traffic.works(gate)
    report = Report()
    for work in works:
        work.start()
    try:
        for stretch, stretch_s in enumerate(stretches):
            began = time.monotonic()
            time.sleep(stretch_s)
            gate.pause(SETTLE_WITHIN_S)
            for work in works:
                if work.failure is not None:
                    raise AssertionError(f"{work.name} failed") from work.failure
            report.stops.append(_settled(mounted))
            report.seconds += time.monotonic() - began if stretch else 0.0
            report.work = {work.name: work.done for work in works}
            report.counters = mounted.counters()
            tell(report)
            gate.resume()
    finally:
        gate.end()
        for work in works:
            work.join(SETTLE_WITHIN_S)
    return report


def _settled(mounted: Mounted) -> Footprint:
    """Wait until nothing is under way and nothing is held, then look. AssertionError if not."""
    until = time.monotonic() + SETTLE_WITHIN_S
    while True:
        # Dentries and inodes that nobody uses, and the pages that keep them.
        Path("/proc/sys/vm/drop_caches").write_text("3")
        held = _held(mounted.status())
        if not held:
            return footprint(mounted.pids())
        assert time.monotonic() < until, f"still held, with nobody there: {held}"
        time.sleep(0.2)


def _held(status: dict[str, Any]) -> dict[str, Any]:
    """The gauges that are not where they belong when nobody uses the mount."""
    arena, opened = status["arena"], status["open"]
    gauges = {
        **{name: opened[name] for name in ZERO},
        "entries but the root": opened["entries"] - 1,
        "peers": status["peers"],
        "requests but this": status["requests"]["under_way"] - 1,
        "fetching": arena["fetching"],
        "pinned": arena["pinned"],
        "in flight": status["fetching"]["in_flight"],
        "pushing": status["page_cache"]["pushing"],
    }
    return {name: value for name, value in gauges.items() if value}
