"""The default against the best fixed setting, on shaped origins and a virtual clock.

The whole engine but the bytes: real reader, prefetcher, fetcher, slots; a model of 8 GiB, read from
start to end by one reader that is infinitely fast. `python -m tests.engine.shaped` prints the
table with every fixed number of connections.
"""

from __future__ import annotations

import pytest

from tests.engine.shaped import GIB, MB, MIB, Origin, budget_for, load

SIZE = 8 * GIB

FIXED = (64, 256)
"""In the whole table one of these is within 1 % of the best of all fixed settings."""

ORIGINS = [(rate, first_byte) for rate in (10, 80, 400) for first_byte in (5, 25, 100)]


@pytest.mark.parametrize(("rate_mb", "first_byte_ms"), ORIGINS)
def test_the_default_is_nearly_as_fast_as_the_best_fixed_setting(
    rate_mb: int, first_byte_ms: int
) -> None:
    """At least 0.9 of it, whatever a connection gives, start-up included."""
    origin = Origin(rate_mb * MB, first_byte_ms / 1000)
    best = max(load(origin, SIZE, budget_for(number)).rate for number in FIXED)
    assert load(origin, SIZE).rate >= 0.9 * best


def test_it_does_not_take_more_than_it_needs() -> None:
    """Where 32 connections fill the link, it stays with them."""
    result = load(Origin(400 * MB, 0.005), SIZE)
    assert result.pace["limit"] == 32
    assert result.rate > 1.6e9


def test_small_memory_uses_what_there_is() -> None:
    """In 64 MiB the limit rises and ranges shrink, up to the best fixed setting."""
    origin = Origin(80 * MB, 0.025)
    best = max(load(origin, GIB, budget_for(n, 64 * MIB)).rate for n in (8, 16, 32, 64))
    assert load(origin, GIB, budget_for(memory=64 * MIB)).rate >= 0.9 * best


@pytest.mark.parametrize(("requests_per_s", "retry_after_s"), [(100, None), (100, 1.0), (30, 1.0)])
def test_a_store_that_limits_requests_gives_more_than_to_any_fixed_setting(
    requests_per_s: int, retry_after_s: float | None
) -> None:
    """With 503 beyond N requests/s the ranges grow: more than N x 8 MiB/s, few refusals."""
    origin = Origin(80 * MB, 0.025, requests_per_s=requests_per_s, retry_after_s=retry_after_s)
    result = load(origin, 2 * SIZE)
    assert result.rate >= requests_per_s * 8 * MIB
    assert 0 < result.throttled < 0.2 * result.counters.requests_read
    assert result.counters.throttled == result.throttled
    assert result.counters.read_errors == 0


def test_a_few_stalled_requests_do_not_stall_the_load() -> None:
    """One answer in 500 is silent for 20 s: with hedges the load takes a second longer, not 20."""
    calm = load(Origin(80 * MB, 0.025), SIZE)
    result = load(Origin(80 * MB, 0.025, stall_chance=0.002), SIZE)
    assert result.counters.hedges_won >= 1
    assert result.counters.hedges <= 4 + 0.05 * result.counters.requests_read
    assert result.seconds < calm.seconds + 3.0


def test_shards_share_one_limit() -> None:
    """Eight files read at once have no more requests in flight than one."""
    origin = Origin(400 * MB, 0.005)
    result = load(origin, SIZE, files=8)
    assert result.busy_max <= 64  # 32, and one try at twice as many
    assert result.rate > 1.6e9


def test_a_store_that_refuses_everything_for_a_while_is_used_again() -> None:
    """Five seconds of nothing but 503 cost these and at most five more, to find the limit again."""
    calm = load(Origin(80 * MB, 0.025), SIZE)
    origin = Origin(80 * MB, 0.025, outage_s=(1.0, 6.0), retry_after_s=0.5)
    result = load(origin, SIZE)
    assert result.throttled > 0
    assert result.seconds < calm.seconds + 5.0 + 5.0
    assert result.pace["limit"] > 16
