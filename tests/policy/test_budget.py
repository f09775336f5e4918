"""Memory: what is taken, and how it is shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import ConfigError
from fusefs.policy.backoff import BACKOFF_MAX_S, backoff_s
from fusefs.policy.budget import MEMORY_MIN, arena_budget, memory_limit

MIB = 1 << 20
GIB = 1 << 30


def test_the_default_is_a_quarter_and_at_most_two_gibibytes() -> None:
    """1 GiB gives 256 MiB, a big machine 2 GiB."""
    assert memory_limit(None, GIB) == 256 * MIB
    assert memory_limit(None, 1024 * GIB) == 2 * GIB


def test_what_the_user_says_counts_down_to_a_floor() -> None:
    """A wish is taken as it is; too little is refused with a sentence."""
    assert memory_limit(3 * GIB, GIB) == 3 * GIB
    with pytest.raises(ConfigError, match="at least 16 MiB"):
        memory_limit(MEMORY_MIN - 1, GIB)


def test_many_workers_take_their_memory_from_the_arena() -> None:
    """Up to four workers are free; more shrink the arena, or are refused with a sentence."""
    assert arena_budget(64 * MIB, 4, MIB, 8 * MIB, 32).size_bytes == 64 * MIB
    assert arena_budget(128 * MIB, 8, MIB, 8 * MIB, 32).size_bytes == 48 * MIB
    with pytest.raises(ConfigError, match="raise memory to at least 96 MiB"):
        arena_budget(64 * MIB, 8, MIB, 8 * MIB, 32)


@given(st.integers(MEMORY_MIN, 64 * GIB), st.sampled_from([256 * 1024, MIB, 4 * MIB, 16 * MIB]))
def test_the_arena_never_exceeds_the_limit(memory: int, block_size: int) -> None:
    """Slots times block size stay within the limit as long as two blocks fit."""
    budget = arena_budget(memory, 2, block_size, 8 * MIB, 32)
    assert budget.size_bytes <= max(memory, 2 * block_size)
    assert 0 < budget.lead_first <= budget.unread_max < budget.slots
    assert 1 <= budget.range_blocks <= max(1, budget.slots // 8)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True), st.floats(0, 1e9))
def test_a_pause_is_bounded_whatever_the_store_says(
    attempt: int, chance: float, retry_after_s: float
) -> None:
    """Retry-After is a floor, and no header parks a read for more than 20 s."""
    pause = backoff_s(attempt, chance, retry_after_s)
    assert min(retry_after_s, 4 * BACKOFF_MAX_S) <= pause <= 4 * BACKOFF_MAX_S
    assert backoff_s(attempt, chance) <= BACKOFF_MAX_S
