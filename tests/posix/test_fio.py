"""fio's checksums through a mount (`python -m tests.posix.fio` has all the combinations)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.posix.fio import MIB, MOUNT_MEMORY, SHORT, Job, Mismatch, verify, write

SIZE = 24 * MIB + 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fio wrote, beside the mount."""
    folder = tmp_path_factory.mktemp("fio")
    write(folder / "data.bin", SIZE)
    return folder


@pytest.fixture(scope="module")
def mounted(folder: Path) -> Iterator[Mounted]:
    """The same, mounted, with less memory than the file has bytes."""
    with open_mount(f"file://{folder}", "--memory", MOUNT_MEMORY) as mount:
        yield mount


@pytest.mark.parametrize("job", SHORT, ids=str)
def test_what_fio_wrote_it_finds_through_the_mount(mounted: Mounted, job: Job) -> None:
    """Every checksum is right, with every engine, in every order."""
    each = SIZE // MIB if job.mib_each is None else job.mib_each
    assert verify(mounted.path / "data.bin", SIZE, job) >= each * MIB * job.jobs


def test_one_wrong_byte_is_found(folder: Path, tmp_path: Path) -> None:
    """The check sees what it is there to see."""
    damaged = tmp_path / "data.bin"
    damaged.write_bytes((folder / "data.bin").read_bytes())
    with damaged.open("r+b") as file:
        file.seek(21 * MIB + 777)
        file.write(b"x")
    with (
        open_mount(f"file://{tmp_path}", "--memory", MOUNT_MEMORY) as mounted,
        pytest.raises(Mismatch, match="verify failed at file"),
    ):
        verify(mounted.path / "data.bin", SIZE, SHORT[0])
