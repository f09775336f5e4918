"""A mount answers every call as the directory behind it does, whatever happens in between."""

from __future__ import annotations

from tests.posix.differential import compare
from tests.posix.machine import SIZES

EXAMPLES = 25
"""`python -m tests.posix.differential` plays as many as wanted."""


def test_a_mount_answers_as_the_directory_behind_it() -> None:
    """Open, read in every way, map, seek, stat, list: alike, or ESTALE once it was replaced."""
    roots = compare(EXAMPLES, limit_s=170.0, derandomize=True)
    assert len(roots.made) >= 18, roots.made
    assert roots.estale >= EXAMPLES, "who has a replaced file open was not told"
    assert roots.versions > len(SIZES)
