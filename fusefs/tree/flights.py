"""Single flight: whoever asks the same question at the same time shares one answer.

It caches nothing itself. The one idea: no task of its own. The first to ask leads and does the
work in its own task, the others wait for an event; if the leader is cancelled, the first of them to
wake up leads anew. So there is nothing to supervise, and nobody waits for a task that is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from fusefs.errors import FusefsError

V = TypeVar("V")


class _Flight(Generic[V]):
    """One question under way. `landed` without an answer and an error: the leader was cancelled."""

    __slots__ = ("answer", "error", "landed")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.answer: tuple[V] | None = None
        self.error: FusefsError | None = None


class Flights(Generic[V]):
    """The questions under way, by key.

    The mutable state of Flights is `_under_way`. INVARIANT: a flight in it has not landed.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, _Flight[V]] = {}

    async def join(self, key: str, ask: Callable[[], Awaitable[V]], keep: Callable[[V], None]) -> V:
        """The answer to `ask()`, asked once for all who join before it lands.

        The leader calls `keep(answer)` in the moment the flight lands, so that nobody can come
        between and ask again; it is not called after `detach(key)`. Raises the `FusefsError` that
        `ask` raised, to each who joined.
        """
        while (flight := self._under_way.get(key)) is not None:
            await flight.landed.wait()
            if flight.answer is not None:
                return flight.answer[0]
            if flight.error is not None:
                # A copy each: raising one exception in many tasks would tangle their tracebacks.
                raise copy.copy(flight.error) from flight.error
        return await self._lead(key, ask, keep)

    def detach(self, key: str) -> None:
        """Let no one else join the flight under way, nor keep its answer: it may be out of date."""
        self._under_way.pop(key, None)

    async def _lead(
        self, key: str, ask: Callable[[], Awaitable[V]], keep: Callable[[V], None]
    ) -> V:
        flight = self._under_way[key] = _Flight[V]()
        try:
            answer = await ask()
            # From here to the end of `finally` there is no await: keeping and landing are one step.
            flight.answer = (answer,)
            if self._under_way.get(key) is flight:
                keep(answer)
        except FusefsError as error:
            flight.error = error
            raise
        else:
            return answer
        finally:
            if self._under_way.get(key) is flight:
                del self._under_way[key]
            flight.landed.set()
