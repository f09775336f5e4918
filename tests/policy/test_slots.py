"""The slot ring: cheap slots first, neighbours together, nothing pinned."""

from hypothesis import given
from hypothesis import strategies as st

from fusefs.policy.slots import Rank, SlotRing

RANKS = st.lists(st.sampled_from(list(Rank)), min_size=1, max_size=40)


@given(RANKS, st.integers(1, 12), st.sampled_from(list(Rank)), st.integers(0, 100))
def test_taken_slots_are_neighbours_and_allowed(
    ranks: list[Rank], count: int, highest: Rank, earlier: int
) -> None:
    """A run lies inside the ring, is no longer than asked, and holds no slot too dear."""
    ring = SlotRing(len(ranks))
    ring.take(len(ranks), lambda slot: Rank.FREE, Rank.FREE)
    for _ in range(earlier % 7):
        ring.take(3, lambda slot: Rank.FREE, Rank.FREE)
    found = ring.take(count, lambda slot: ranks[slot], highest)
    allowed = [rank for rank in ranks if rank <= min(highest, Rank.ACTIVE)]
    if not allowed:
        assert found is None
        return
    assert found is not None
    first, length = found
    assert 1 <= length <= count and first >= 0 and first + length <= len(ranks)
    assert all(ranks[slot] <= highest for slot in range(first, first + length))
    assert all(ranks[slot] is not Rank.PINNED for slot in range(first, first + length))
    assert min(ranks) in [ranks[slot] for slot in range(first, first + length)]


def test_the_hand_walks_so_that_slots_rest_longest() -> None:
    """Slots are reused in the order they were taken, a full turn later."""
    ring = SlotRing(8)
    ring.take(8, lambda slot: Rank.FREE, Rank.FREE)
    taken = [ring.take(2, lambda slot: Rank.FREE, Rank.FREE) for _ in range(5)]
    assert taken == [(0, 2), (2, 2), (4, 2), (6, 2), (0, 2)]


def test_used_memory_is_taken_before_memory_that_never_was() -> None:
    """The ring grows only while no free run lies ahead of the hand."""
    ring = SlotRing(100)
    busy: set[int] = set()

    def rank(slot: int) -> Rank:
        return Rank.PINNED if slot in busy else Rank.FREE

    for _ in range(3):
        found = ring.take(4, rank, Rank.FREE)
        assert found is not None
        busy.update(range(found[0], found[0] + found[1]))
    assert ring.span == 12
    busy.difference_update(range(4))
    assert ring.take(4, rank, Rank.FREE) == (0, 4)
    assert ring.span == 12


def test_free_slots_are_taken_before_idle_ones_even_if_fewer() -> None:
    """One free slot beats a full run that would evict."""
    ranks = [Rank.IDLE, Rank.IDLE, Rank.FREE, Rank.IDLE, Rank.IDLE]
    ring = SlotRing(5)
    ring.take(5, lambda slot: Rank.FREE, Rank.FREE)
    assert ring.take(2, lambda slot: ranks[slot], Rank.IDLE) == (2, 1)


def test_slots_that_stay_in_use_do_not_make_the_ring_grow() -> None:
    """A few long-lived blocks right ahead of the hand are stepped over."""
    ring = SlotRing(1000)
    ring.take(64, lambda slot: Rank.FREE, Rank.FREE)
    kept = set(range(0, 40, 5))
    for _ in range(50):
        ring.take(8, lambda slot: Rank.IDLE if slot in kept else Rank.FREE, Rank.FREE)
    assert ring.span == 64
