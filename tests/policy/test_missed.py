"""Who asks again at once for what has just reached its deadline."""

from __future__ import annotations

from fusefs.policy.missed import AGAIN_S, AGAIN_WAIT_S, MISSED_MAX, Missed


def test_what_was_missed_is_waited_for_briefly_and_only_for_a_while() -> None:
    """Any of the things asked for counts; a second later all is as before."""
    missed = Missed()
    assert missed.wait_s(["a"], 60.0, 0.0) == 60.0
    missed.missed(["a", "b"], 60.0)
    assert missed.wait_s(["b", "c"], 60.0, 60.1) == AGAIN_WAIT_S
    assert missed.wait_s(["c"], 60.0, 60.1) == 60.0
    assert missed.wait_s(["a"], 0.1, 60.1) == 0.1
    assert missed.wait_s(["a"], 60.0, 60.0 + AGAIN_S) == 60.0


def test_a_chain_of_questions_stays_short() -> None:
    """Each that misses again moves the moment on: many processes do not wait many times."""
    missed, now = Missed(), 60.0
    missed.missed(["a"], now)
    for _ in range(100):
        wait_s = missed.wait_s(["a"], 60.0, now + 0.01)
        assert wait_s == AGAIN_WAIT_S
        now += wait_s
        missed.missed(["a"], now)


def test_what_is_remembered_is_bounded() -> None:
    """Of many things missed at once the oldest are forgotten."""
    missed = Missed()
    missed.missed(list(range(2 * MISSED_MAX)), 1.0)
    assert missed.wait_s([0], 60.0, 1.0) == 60.0
    assert missed.wait_s([2 * MISSED_MAX - 1], 60.0, 1.0) == AGAIN_WAIT_S
