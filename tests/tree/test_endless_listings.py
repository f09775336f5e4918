"""Listings that lead from page to page without an end."""

from __future__ import annotations

import pytest
import trio

from fusefs.errors import CorruptData
from fusefs.objects import ListPage
from fusefs.tree.inodes import ROOT_INODE
from fusefs.tree.listings import PAGES_WITHOUT_NEWS_MAX
from tests.tree.simulated import SimulatedBucket, make_tree


class Circle(SimulatedBucket):
    """Pages whose tokens go round, or on for ever."""

    def __init__(self, tokens: int | None) -> None:
        super().__init__(["a", "b"], latency_s=0.001)
        self._tokens = tokens

    async def list_page(self, prefix: str, token: str | None) -> ListPage:
        """Always the same names, and another token."""
        page = await super().list_page(prefix, None)
        number = int(token or 0) + 1
        following = number % self._tokens if self._tokens else number
        return ListPage(page.objects, page.prefixes, str(following))


@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
async def test_a_circle_is_seen_when_it_closes(
    autojump_clock: trio.testing.MockClock, tokens: int
) -> None:
    """A token that comes a second time ends the listing, after as many pages as the circle has."""
    bucket = Circle(tokens)
    with pytest.raises(CorruptData, match="does not end"):
        await make_tree(bucket).listing(ROOT_INODE)
    assert len(bucket.lists) <= tokens + 1


async def test_pages_that_bring_nothing_end_too(autojump_clock: trio.testing.MockClock) -> None:
    """Tokens that are always new, and names that never are: it ends all the same."""
    bucket = Circle(None)
    with pytest.raises(CorruptData, match="does not end"):
        await make_tree(bucket).listing(ROOT_INODE)
    assert len(bucket.lists) <= PAGES_WITHOUT_NEWS_MAX + 3
