"""Random histories agree with the model, and planted mutants do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.engine.fetcher import log as fetcher_log
from tests.reference.actions import Action
from tests.reference.histories import ACTIONS, BEGINNING, random_history
from tests.reference.model import World, play
from tests.reference.mutants import MUTANTS, Mutant

SEEDS = 60
"""Histories that are played without a mutant, and within which each mutant must be caught."""


def run(history: list[Action], mutate: Callable[[World], None] = lambda world: None) -> None:
    """Play one history on a virtual clock."""
    trio.run(play, BEGINNING + history, mutate, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed objects are what histories are about: what is logged of them is no news here."""
    monkeypatch.setattr(fetcher_log, "disabled", True)


@pytest.mark.usefixtures("quiet")
@given(history=st.lists(ACTIONS, max_size=30), schedule=st.random_module())
@settings(max_examples=150)
def test_histories_agree_with_the_model(history: list[Action], schedule: object) -> None:
    """Reads, pages and slots give the pinned version's bytes or a documented error, always."""
    run(history)


@pytest.mark.usefixtures("quiet")
def test_random_histories_without_a_mutant_pass() -> None:
    """Busy histories agree with the model when nothing is planted."""
    for seed in range(SEEDS):
        run(random_history(seed))
        assert random_history(seed) == random_history(seed)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_mutants_are_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is sharp enough to see each of the classic mistakes, in the same histories."""
    for seed in range(SEEDS):
        with monkeypatch.context() as planted:
            if _is_caught(random_history(seed), lambda world: mutant(world, planted)):
                return
    pytest.fail(f"{mutant.__name__} survived {SEEDS} histories")


def _is_caught(history: list[Action], mutate: Callable[[World], None]) -> bool:
    """Whether the model objects, or the engine's own bookkeeping breaks."""
    try:
        run(history, mutate)
    except BaseExceptionGroup as group:
        return group.subgroup((AssertionError, KeyError, ValueError)) is not None
    return False
