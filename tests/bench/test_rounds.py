"""Who runs when, on a clock that only the runs move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bench.contestants import RAW_VARIANTS, Contestant
from tests.bench.processes import ChildFailed
from tests.bench.report import Sample
from tests.bench.rounds import calibrate, run_rounds
from tests.bench.scenarios import SCENARIOS, Scenario
from tests.bench.test_report import make_sample

RUN_S = 10.0
READ = SCENARIOS[0]
PLAN = ((READ, (Contestant("a"), Contestant("b"))),)


class Stub:
    """Stands for `Bench`: each run takes ten seconds of its own clock.

    The mutable state of a stub is the time and what it was told.
    """

    def __init__(self, errors: bool = False, fastest: str = "") -> None:
        self.errors = errors
        self.fastest = fastest
        self.time_s = 0.0
        self.heard: list[str] = []

    @property
    def say(self) -> Callable[[str], None]:
        """Remember what is told."""
        return self.heard.append

    def now(self) -> float:
        """Return the time."""
        return self.time_s

    def run(self, scenario: Scenario, contestant: Contestant, number: int) -> Sample:
        """Let time pass."""
        self.time_s += RUN_S
        seconds = 1.0 if contestant.variant == self.fastest else 2.0
        error = "no answer" if self.errors else None
        return make_sample(contestant.label, number, seconds, error=error)


def test_every_other_round_is_reversed() -> None:
    """Contestants take turns in being first."""
    stub = Stub()
    samples = run_rounds(stub, PLAN, 3, 1000.0, stub.now)
    order = [(sample.round, sample.label) for sample in samples]
    assert order == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]


@pytest.mark.parametrize(("limit_s", "rounds"), [(0.0, 1), (39.0, 1), (40.0, 2), (60.0, 3)])
def test_no_round_begins_too_late(limit_s: float, rounds: int) -> None:
    """A round of 20 s begins only if it fits; the first always does; the reason is told."""
    stub = Stub()
    samples = list(run_rounds(stub, PLAN, 3, limit_s, stub.now))
    assert max(sample.round for sample in samples) == rounds
    assert any("no time" in line for line in stub.heard) == (rounds < 3)


def test_calibration_keeps_the_fastest() -> None:
    """The raw ceiling is the setting with the best median, each tried more than once."""
    chosen, samples = calibrate(Stub(fastest="2x16"), READ)
    assert chosen.label == "raw:2x16"
    assert len(samples) > len(RAW_VARIANTS)
    assert {sample.round for sample in samples} == {0}


def test_an_origin_that_does_not_work_ends_the_run() -> None:
    """If no raw setting works there is nothing to measure, and the reason is told."""
    with pytest.raises(ChildFailed, match="no answer"):
        calibrate(Stub(errors=True), READ)
