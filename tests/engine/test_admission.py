"""READs of many blocks at once: they never wait for one another's slots."""

from __future__ import annotations

import trio

from fusefs.engine.reader import Admission
from fusefs.errors import StoreUnavailable
from tests.engine.simulated import BLOCK, content, open_engine


async def test_large_reads_at_once_do_not_lock_up(autojump_clock: trio.testing.MockClock) -> None:
    """Twenty READs of 17 blocks each come through an arena of 32 slots, with failures, too.

    What failed comes back when the others' blocks have filled the arena.
    """
    size = 400 * BLOCK
    async with open_engine(slots=32) as engine:
        engine.bucket.put("a.bin", size)
        engine.bucket.faults.extend([StoreUnavailable("simulated"), None] * 20)
        file = engine.open("a.bin")
        done = []

        async def read(offset: int) -> None:
            got = await engine.read(file, offset, 17 * BLOCK)
            assert got == content("a.bin", 1, size)[offset : offset + 17 * BLOCK]
            done.append(offset)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(read, number * 17 * BLOCK)
        assert len(done) == 20


async def test_one_of_any_size_is_let_in_and_the_next_wait_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who wants more than there is comes in alone, and nobody overtakes it."""
    admission, order = Admission(4), []

    async def come(name: str, blocks: int, after_s: float) -> None:
        await trio.sleep(after_s)
        async with admission.admitted(blocks):
            order.append((name, trio.current_time() - began_s))
            await trio.sleep(10)

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, (name, blocks) in enumerate([("a", 2), ("huge", 9), ("b", 1), ("c", 3)]):
            nursery.start_soon(come, name, blocks, number / 10)
    assert [(name, round(at_s)) for name, at_s in order] == [
        ("a", 0), ("huge", 10), ("b", 20), ("c", 20),
    ]  # fmt: skip


async def test_who_gives_up_leaves_no_trace(autojump_clock: trio.testing.MockClock) -> None:
    """A READ whose deadline passes before it is let in holds nothing, nor its turn."""
    admission = Admission(1)
    async with admission.admitted(1):
        with trio.move_on_after(5) as scope:
            async with admission.admitted(1):
                raise AssertionError("there was no room")
        assert scope.cancelled_caught
    with trio.fail_after(1):
        async with admission.admitted(1):
            pass
