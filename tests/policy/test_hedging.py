"""What counts as late, and how many second requests there may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.hedging import (
    AT_ONCE_MAX,
    FREE,
    LATE_FACTOR,
    LATE_MIN_S,
    LATE_UNKNOWN_S,
    SAMPLES_MIN,
    Tail,
    may_hedge,
)

MIB = 1 << 20


def tail(first_s: float, per_byte: float, samples: int = 100) -> Tail:
    made = Tail()
    for _ in range(samples):
        made.landed(MIB, first_s, True)
        made.landed(MIB, MIB * per_byte, False)
    return made


def test_a_request_is_late_after_three_times_what_is_normal() -> None:
    """1 s to the first bytes, 0.5 s for each MiB more: the third MiB is late after 6 s."""
    normal = tail(1.0, 0.5 / MIB)
    assert not normal.is_late(5.9, 2 * MIB)
    assert normal.is_late(6.1, 2 * MIB)
    assert normal.is_late(3.1, 0) and not normal.is_late(2.9, 0)


def test_nothing_is_late_at_once() -> None:
    """However fast the others are, half a second is nothing."""
    fast = tail(0.005, 1e-9)
    assert not fast.is_late(LATE_MIN_S - 0.01, 0)
    assert fast.is_late(LATE_MIN_S + 0.01, 0)


def test_without_experience_two_seconds_are_late() -> None:
    """The very first request of a mount can be hedged, too."""
    young = tail(3.0, 0.0, SAMPLES_MIN - 1)
    assert not young.is_late(LATE_UNKNOWN_S - 0.1, 0)
    assert young.is_late(LATE_UNKNOWN_S + 0.1, 0)
    assert not tail(3.0, 0.0, SAMPLES_MIN).is_late(LATE_UNKNOWN_S + 0.1, 0)


def test_a_few_outliers_do_not_make_late_normal() -> None:
    """One in thirty slow requests leaves the measure alone; half of them move it."""
    mixed = Tail()
    for number in range(240):
        mixed.landed(MIB, 10.0 if number % 30 == 0 else 0.1, True)
    assert mixed.is_late(1.0, 0)
    for _ in range(120):
        mixed.landed(MIB, 10.0, True)
    assert not mixed.is_late(LATE_FACTOR * 9.0, 0)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 100))
def test_hedges_stay_few(hedges: int, requests: int, at_once: int) -> None:
    """At most 5 % and a handful, and never many at once."""
    if may_hedge(hedges, requests, at_once):
        assert hedges + 1 <= FREE + 1 + 0.05 * requests
        assert at_once + 1 <= AT_ONCE_MAX


@pytest.mark.parametrize(("hedges", "requests"), [(0, 0), (3, 0), (8, 100)])
def test_some_are_allowed(hedges: int, requests: int) -> None:
    """A mount that just began may hedge, and so may one that has sent many requests."""
    assert may_hedge(hedges, requests, 0)
