"""A body that crawls is given up; one that is only slow is not."""

from __future__ import annotations

import pytest

from fusefs.errors import StoreTimeout
from fusefs.store.base import SILENCE_MIN_S, silence_s
from fusefs.store.crawl import CRAWL_BYTES_MIN, CRAWL_WINDOW_S, Crawl
from fusefs.store.http_body import receive
from tests.store_contract.wire import DATA, SIZE


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def give(rate: float, seconds: float, clock: Clock, crawl: Crawl) -> None:
    """So many bytes/s in steps of a second."""
    for _ in range(int(seconds)):
        clock.now_s += 1.0
        crawl.received(int(rate), "the object")


def test_a_trickle_ends_after_one_window() -> None:
    """1 KB/s is StoreTimeout once a window is over, and says how little came."""
    clock = Clock()
    crawl = Crawl(clock)
    give(1024, CRAWL_WINDOW_S - 1, clock, crawl)
    with pytest.raises(StoreTimeout, match="the object came too slowly: 20480 bytes in 20 s"):
        give(1024, 1, clock, crawl)


def test_a_slow_connection_may_take_for_ever() -> None:
    """At a rate just above the limit nothing happens, however long it takes."""
    clock = Clock()
    give(CRAWL_BYTES_MIN / CRAWL_WINDOW_S + 1, 3600, clock, Crawl(clock))
    assert clock.now_s == 3600


def test_a_fast_begin_does_not_excuse_a_trickle() -> None:
    """Each window is judged by its own bytes."""
    clock = Clock()
    crawl = Crawl(clock)
    give(10e6, CRAWL_WINDOW_S, clock, crawl)
    with pytest.raises(StoreTimeout):
        give(1024, CRAWL_WINDOW_S, clock, crawl)


class Body:
    """A body of a byte per second, by a clock of its own."""

    def read(self, size: int, /) -> bytes:
        return DATA[: min(size, 1)]


def test_a_body_in_single_bytes_is_received_as_it_comes() -> None:
    """What arrives in pieces of any size is put together, and told of in full MiB."""
    told: list[int] = []
    buffer = bytearray(300)
    receive(Body(), None, memoryview(buffer), told.append, "the object")
    assert buffer == DATA[:1] * 300 and told == [300]
    assert len(DATA) == SIZE


@pytest.mark.parametrize(
    ("deadline_s", "wait_s"), [(120.0, 20.0), (60.0, 20.0), (30.0, 10.0), (3.0, SILENCE_MIN_S)]
)
def test_a_short_deadline_leaves_time_for_another_try(deadline_s: float, wait_s: float) -> None:
    """Silence is waited for a third of the deadline at most, though never less than 2 s."""
    assert silence_s(20.0, deadline_s) == wait_s
