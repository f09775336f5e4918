"""What the tests of hints share: a directory of files on a mount."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount

MIB = 1 << 20


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with no header worth the name, and two small files."""
    directory = tmp_path_factory.mktemp("weights")
    (directory / "sub").mkdir()
    noise = random.Random(11)
    for name, size in (
        ("a.safetensors", 24 * MIB + 77),
        ("b.safetensors", 9 * MIB),
        ("config.json", 300),
        ("sub/c.bin", 3 * MIB + 5),
    ):
        (directory / name).write_bytes(noise.randbytes(size))
    return directory


@pytest.fixture
def mounted(weights: Path) -> Iterator[Mounted]:
    """That directory, mounted, with an arena of 64 MiB."""
    with open_mount(f"file://{weights}", "--memory", "64M") as mount:
        yield mount


@pytest.fixture(scope="module")
def mounted_for_all(weights: Path) -> Iterator[Mounted]:
    """The same mount for all tests of a module."""
    with open_mount(f"file://{weights}", "--memory", "64M") as mount:
        yield mount
