"""One fault, one mount, three readers: what became of them.

The chain is readers → mount → link → faulty server → real server, all real, all of one run. The one
idea: readers are processes that are watched from outside, by a file they write and by their end, so
that a read that never returns and one that ends in SIGBUS are measured like any other.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.chain import Chain, Shop, open_chain
from tests.faults.faults import NAMES_TTL_S, Fault
from tests.faults.link import FAIR, Weather
from tests.faults.model import Model
from tests.faults.outcome import Outcome
from tests.faults.reader import PULSE, WAYS, longest_s
from tests.faults.resolver import Resolver
from tests.harness.mounted import ROOT, Mounted, MountFailed, open_mount
from tests.harness.watchdog import tear_down

HANG_S = 90.0
"""A reader that has not ended so long after all its deadlines hangs."""

SETTLE_S = 75.0
"""How long what is under way may take to end once all is well: silence is noticed after 20 s, a
crawl within 40."""

RECOVERY_S = 60.0
"""How long a load of a file takes at most once all is well."""

POLL_S = 0.05

HALF_WAY = Weather(passes=4 << 20)
"""So much has come when a fault strikes in mid-load."""


def run_fault(
    fault: Fault,
    shop: Shop,
    model: Model,
    folder: Path,
    lasts_s: float | None,
    resolver: Resolver | None = None,
) -> Outcome:
    """One run; its own files are in `folder`."""
    with open_chain(shop, folder, resolver) as chain:
        options = [
            *("--set", "engine.range_size=1M"),
            *("--set", f"engine.read_deadline_s={fault.deadline_s}"),
            *("--set", f"tree.ttl_s={NAMES_TTL_S}"),
        ]
        outcome = None
        try:
            with open_mount(
                chain.source,
                *options,
                environment=chain.environment,
                limit_s=2 * HANG_S + SETTLE_S + 4 * fault.deadline_s,
                warnings_expected=True,
            ) as mounted:
                outcome = Run(fault, chain, model, mounted, folder, lasts_s).run()
        except MountFailed as failure:
            if outcome is None:
                raise
            # Another mount namespace of the machine may have a copy of this mount for some more
            # seconds. How mounts end is not asked here, and `open_mount` leaves nothing.
            outcome.notes.append(str(failure))
        return outcome


class Run:
    """One run of a fault on a mount that is there.

    The mutable state of Run is its outcome, and the readers.
    """

    def __init__(
        self,
        fault: Fault,
        stage: Chain,
        model: Model,
        mounted: Mounted,
        folder: Path,
        lasts_s: float | None,
    ) -> None:
        self._fault = fault
        self._stage = stage
        self._model = model
        self._mounted = mounted
        self._folder = folder
        self._lasts_s = lasts_s
        self._outcome = Outcome(fault)

    def run(self) -> Outcome:
        """Load, strike, heal, load again."""
        fault, outcome = self._fault, self._outcome
        if fault.early:
            fault.begin(self._stage)
        else:
            self._stage.weather(HALF_WAY)
        with ExitStack() as stack:
            ways = ["names"] if fault.listing else list(WAYS)
            readers = [self._start(way, "model", stack) for way in ways]
            if not fault.early:
                self._wait_under_way()
                fault.begin(self._stage)
                if self._stage.link.weather is HALF_WAY:
                    self._stage.weather(FAIR)
            if self._lasts_s is not None:
                self._watch(readers, time.monotonic() + self._lasts_s)
                outcome.struck += fault.end(self._stage)
            self._watch(readers, time.monotonic() + HANG_S + 4 * fault.deadline_s)
            for reader in readers:
                self._take(reader)
            if self._lasts_s is None:
                outcome.struck += fault.end(self._stage)
            outcome.requests = self._mounted.counters()["requests"]
            self._recover(stack)
        return outcome

    def _recover(self, stack: ExitStack) -> None:
        """All is well: files nobody has read yet load, and so do those of before."""
        until = time.monotonic() + RECOVERY_S
        errors_until_s = time.monotonic() + self._fault.returns_s
        for folder in ("after", "model"):
            began_s = time.monotonic()
            while not self._loads(folder, until, stack):
                if began_s > errors_until_s:
                    self._outcome.recovered = False
                    return
                began_s = time.monotonic()
        until = time.monotonic() + SETTLE_S
        while any(self._gauges().values()) and time.monotonic() < until:
            time.sleep(POLL_S)
        self._outcome.gauges = self._gauges()

    def _loads(self, folder: str, until_s: float, stack: ExitStack) -> bool:
        """Whether a folder can be loaded without an error."""
        reader = self._start("read", folder, stack)
        self._watch([reader], until_s)
        ended = reader.poll_result()
        self._outcome.notes.append(f"{folder} afterwards: {ended}")
        return ended is not None and set(ended.values()) == {"exact"}

    def _gauges(self) -> dict[str, int]:
        status = self._mounted.status()
        return {
            "in_flight": status["fetching"]["in_flight"],
            "fetching": status["arena"]["fetching"],
            "pinned": status["arena"]["pinned"],
            "pushing": status["page_cache"]["pushing"],
        }

    def _start(self, way: str, folder: str, stack: ExitStack) -> Reader:
        reader = Reader(way, self._mounted.path / folder, self._model, self._folder)
        stack.callback(reader.kill)
        self._outcome.loads += 1
        return reader

    def _wait_under_way(self) -> None:
        until = time.monotonic() + HANG_S
        while not self._stage.link.has_passed:
            assert time.monotonic() < until, "the load does not begin"
            time.sleep(POLL_S)

    def _watch(self, readers: list[Reader], until_s: float) -> None:
        """Until all readers have ended, or then; meanwhile the status is asked."""
        while time.monotonic() < until_s:
            results = [reader.poll_result() for reader in readers]  # each: it notes who has ended
            if None not in results:
                return
            began_s = time.monotonic()
            self._mounted.status()
            self._outcome.status_s = max(self._outcome.status_s, time.monotonic() - began_s)
            time.sleep(POLL_S)

    def _take(self, reader: Reader) -> None:
        outcome = self._outcome
        result = reader.poll_result()
        if result is None:
            outcome.became["hung"] += 1
            outcome.longest_s = max(outcome.longest_s, reader.longest_s())
            tear_down(self._mounted.path, self._mounted.marker)
            raise AssertionError(f"{self._fault.name}: a reader ({reader.way}) hangs")
        outcome.became.update(result.values())
        outcome.longest_s = max(outcome.longest_s, reader.longest_s())


class Reader:
    """A process that loads, from outside.

    The mutable state of Reader is when its end was seen.
    """

    def __init__(self, way: str, folder: Path, model: Model, scratch: Path) -> None:
        self.way = way
        number = time.monotonic_ns()
        self._pulse = scratch / f"{way}-{number}.pulse"
        self._pulse.write_bytes(bytes(PULSE.size))
        self._output = scratch / f"{way}-{number}.out"
        wanted = scratch / f"{way}-{number}.json"
        wanted.write_text(json.dumps(model.wanted))
        arguments = [way, str(folder), str(wanted), str(self._pulse)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.reader", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._ended_s = 0.0

    def poll_result(self) -> dict[str, str] | None:
        """What became of each file, once it has ended."""
        status = self._process.poll()
        if status is None:
            return None
        self._ended_s = self._ended_s or time.monotonic()
        text = self._output.read_text()
        result: dict[str, str] = {}
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                name, became = json.loads(line)
                result[name] = became
        if status == -signal.SIGBUS:
            result["?"] = "SIGBUS"
        elif status:
            raise AssertionError(f"a reader ({self.way}) failed with {status}: {text[-2000:]}")
        return result

    def longest_s(self) -> float:
        """Its longest access."""
        return longest_s(self._pulse, self._ended_s or time.monotonic())

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
