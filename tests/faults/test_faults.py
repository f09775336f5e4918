"""Each fault once, on real mounts: the right bytes, or the documented errno in the documented time.

`python -m tests.faults --minutes N` does the same for as long as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.faults import FAULTS
from tests.faults.scene import Outcome
from tests.faults.suite import open_place, run_all

ALL_LIMIT_S = 600
"""All runs together take about a minute on two idle cores."""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """What became of each fault; they run side by side."""
    with open_place() as place:
        yield {outcome.fault.name: outcome for outcome in run_all(FAULTS, place)}


@pytest.mark.timeout(ALL_LIMIT_S)
@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_ends_as_documented(outcomes: dict[str, Outcome], name: str) -> None:
    """No wrong byte, no hang, no other errno, no later than said, and all is well afterwards."""
    assert outcomes[name].complaints() == []
