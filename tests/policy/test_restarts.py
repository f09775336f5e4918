"""When daemons are started again, as histories of lives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.heartbeat import LOOK_S, MISSES_MAX, Heartbeat
from fusefs.policy.restarts import GIVE_UP_S, LONG_S, PAUSE_MAX_S, STEADY_S, Restarts


def test_a_daemon_that_served_is_replaced_at_once() -> None:
    """However often, as long as each served for a while."""
    restarts, now = Restarts(0.0), 0.0
    for _ in range(100):
        restarts.serves(now)
        now += STEADY_S
        restarts.ended(now)
        assert restarts.pause_s() == 0.0
        assert not restarts.is_hopeless(now)


def test_pauses_grow_while_daemons_die_young_and_shrink_again() -> None:
    """The first death costs no pause; a crash loop costs one start in five seconds."""
    restarts, now = Restarts(0.0), 0.0
    pauses = []
    for _ in range(12):
        restarts.serves(now)
        restarts.ended(now)
        pauses.append(restarts.pause_s())
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S
    restarts.serves(now)
    restarts.ended(now + LONG_S)
    assert restarts.pause_s() == 0.0


@given(st.lists(st.floats(0.0, STEADY_S * 0.9), max_size=300))
def test_only_a_long_time_without_service_is_hopeless(lives: list[float]) -> None:
    """Counted from when a daemon was last known to serve, not from the last start."""
    restarts, now = Restarts(0.0), 0.0
    for life in lives:
        restarts.serves(now)
        assert not restarts.is_hopeless(now)
        now += life
        restarts.ended(now)
        assert restarts.is_hopeless(now) == (now > GIVE_UP_S)
        now += restarts.pause_s()


def test_a_heart_that_beats_now_and_then_is_not_lost() -> None:
    """One beat in the time of all looks but one is enough."""
    heartbeat, beats = Heartbeat(), 0
    heartbeat.begin(beats, 0.0)
    for look in range(1, 200):
        beats += look % (MISSES_MAX - 1) == 0
        assert not heartbeat.is_lost(beats, look * LOOK_S)


def test_a_heart_that_stopped_is_lost_after_so_many_looks() -> None:
    """Not before, however often it is looked in between; and a machine that stood still is one."""
    heartbeat = Heartbeat()
    heartbeat.begin(7, 0.0)
    for look in range(1, MISSES_MAX):
        assert not heartbeat.is_lost(7, look * LOOK_S)
        assert not heartbeat.is_lost(7, look * LOOK_S + 0.1)
    assert heartbeat.is_lost(7, MISSES_MAX * LOOK_S)
    heartbeat.begin(7, 0.0)
    assert not heartbeat.is_lost(7, 1e6)
    heartbeat.end()
    assert not heartbeat.is_lost(7, 2e6)
