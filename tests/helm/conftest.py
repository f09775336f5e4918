"""What several tests of the chart look at: one rendering with nothing set."""

from __future__ import annotations

import pytest

from tests.helm.chart import Object, render


@pytest.fixture(scope="session")
def default_objects() -> list[Object]:
    """The chart's objects by default; not to be changed."""
    return render([])
