"""Most faults once, on real mounts: the right bytes, or the documented errno in time.

`python -m tests.faults --minutes N` does the same for as long as wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import BY_NAME
from tests.faults.outcome import Outcome
from tests.faults.suite import open_place, run_all

BRIEF = [fault for fault in BY_NAME.values() if fault.brief]
"""Without those that another one is like: a minute less."""

ALL_LIMIT_S = 600
"""All runs together take about a minute on two idle cores."""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """What became of each fault; they run side by side."""
    with open_place(BRIEF) as place:
        yield {outcome.fault.name: outcome for outcome in run_all(BRIEF, place)}


def test_the_documented_table_is_what_is_tested(repository: Path) -> None:
    """docs/semantics.md says of each fault what its row here says: errno and deadline."""
    said = {}
    for line in (repository / "docs/semantics.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (name := re.fullmatch(r"`([\w-]+)`", cells[0])):
            said[name[1]] = (re.findall(r"\bE[A-Z]+\b", cells[2]), cells[3])
    within = {"never": "", "at once": "at once", "the deadline": "`engine.read_deadline_s`"}
    assert said == {
        fault.name: (
            [errno for errno in (fault.errno, fault.reopened) if errno],
            within[fault.within],
        )
        for fault in BY_NAME.values()
    }


@pytest.mark.timeout(ALL_LIMIT_S)
@pytest.mark.parametrize("name", [fault.name for fault in BRIEF])
def test_a_fault_ends_as_documented(outcomes: dict[str, Outcome], name: str) -> None:
    """No wrong byte, no hang, no other errno, no later than said, and all is well afterwards."""
    assert outcomes[name].complaints() == []
