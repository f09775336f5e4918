"""What the tests of recovery share: a plain directory, mounted."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, Mounted, open_mount

MIB = 1 << 20
NAMES = 700
"""Files in one folder: several READDIRs, and several reads of getdents64."""


@pytest.fixture(scope="session")
def plain_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A big file, small ones in two folders, a shard."""
    directory = tmp_path_factory.mktemp("recovery")
    noise = random.Random(9)
    (directory / "big.bin").write_bytes(noise.randbytes(48 * MIB + 77))
    (directory / "w.safetensors").write_bytes(noise.randbytes(9 * MIB))
    for name in ("many", "other"):
        (directory / name).mkdir()
        for number in range(NAMES):
            (directory / name / f"a-file-with-number-{number}").write_bytes(b"x" * (number % 50))
    return directory


@pytest.fixture
def resumed(plain_files: Path) -> Iterator[Mounted]:
    """That directory, mounted; its daemon may be killed, which it warns of."""
    with open_mount(f"file://{plain_files}", "--memory", "64M", warnings_expected=True) as mount:
        yield mount


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of our code, to be changed."""
    for package in ("fusefs", "loaderhint"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package)
    return tmp_path / "code"
