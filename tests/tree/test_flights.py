"""Single flight: one question, one answer, nobody left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from fusefs.errors import StoreThrottled
from fusefs.tree.flights import Flights


class _Question:
    """Takes a second to answer, counts how often it was asked, and notes what was kept."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked = 0
        self.kept: list[int] = []
        self.failure = failure

    async def ask(self) -> int:
        self.asked += 1
        number = self.asked
        await trio.sleep(1)
        if self.failure is not None:
            raise self.failure
        return number

    def keep(self, answer: int) -> None:
        self.kept.append(answer)


async def _collect(
    flights: Flights[int],
    question: _Question,
    answers: list[int],
    scope: Callable[[], trio.CancelScope] = trio.CancelScope,
) -> None:
    with scope():
        answers.append(await flights.join("k", question.ask, question.keep))


async def test_one_question_for_all(autojump_clock: trio.testing.MockClock) -> None:
    """Everyone who comes while the question is open gets its one answer, kept once."""
    flights, question, answers = Flights[int](), _Question(), list[int]()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(_collect, flights, question, answers)
    assert (answers, question.asked, question.kept) == ([1] * 5, 1, [1])


async def test_a_later_question_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """An answer serves only those who joined before it landed."""
    flights, question, answers = Flights[int](), _Question(), list[int]()
    await _collect(flights, question, answers)
    await _collect(flights, question, answers)
    assert answers == [1, 2]


async def test_cancelled_leader_is_succeeded(autojump_clock: trio.testing.MockClock) -> None:
    """If the leader is cancelled one follower asks anew and the others follow it."""
    flights, question, answers = Flights[int](), _Question(), list[int]()
    leader = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect, flights, question, answers, lambda: leader)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(_collect, flights, question, answers)
        await trio.sleep(0.5)
        leader.cancel()
    assert (answers, question.asked, question.kept) == ([2] * 4, 2, [2])
    assert trio.current_time() == pytest.approx(1.5)


async def test_cancelled_follower_leaves_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A follower that gives up takes nothing from the others."""
    flights, question, answers = Flights[int](), _Question(), list[int]()
    follower = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect, flights, question, answers)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_collect, flights, question, answers, lambda: follower)
        nursery.start_soon(_collect, flights, question, answers)
        await trio.sleep(0.5)
        follower.cancel()
    assert (answers, question.asked) == ([1, 1], 1)


async def test_error_reaches_everyone_once(autojump_clock: trio.testing.MockClock) -> None:
    """A failure is everyone's, whole, each with an exception of its own, and is not kept."""
    flights = Flights[int]()
    question = _Question(StoreThrottled("slow down", retry_after_s=3.0))
    errors: list[StoreThrottled] = []

    async def fail() -> None:
        try:
            await flights.join("k", question.ask, question.keep)
        except StoreThrottled as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(fail)
    assert [(str(e), e.retry_after_s) for e in errors] == [("slow down", 3.0)] * 3
    assert len({id(e) for e in errors}) == 3
    assert (question.asked, question.kept) == (1, [])


async def test_defect_does_not_strand(autojump_clock: trio.testing.MockClock) -> None:
    """A defect in the leader ends the leader; followers ask for themselves."""
    flights, question, answers = Flights[int](), _Question(KeyError("defect")), list[int]()

    async def lead() -> None:
        with pytest.raises(KeyError):
            await flights.join("k", question.ask, question.keep)
        question.failure = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_collect, flights, question, answers)
    assert answers == [2]


async def test_detached_answer_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """After `detach` those under way get the old answer, it is not kept, and newcomers ask anew."""
    flights, question, answers = Flights[int](), _Question(), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect, flights, question, answers)
        await trio.sleep(0.5)
        flights.detach("k")
        nursery.start_soon(_collect, flights, question, answers)
        await trio.sleep(0.7)
        nursery.start_soon(_collect, flights, question, answers)
    assert (answers, question.kept) == ([1, 2, 2], [2])
