"""What writing to a directory promises beyond the contract of all writers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusefs.errors import FusefsError, Unsupported
from fusefs.store.posix_write import PosixWriter

HOSTILE = ("../outside", "/absolute", "a/../b", "a//b", "", ".", "nul\0", "x" * 256, "a/")


@pytest.mark.parametrize("key", HOSTILE)
def test_no_key_leaves_the_directory(tmp_path: Path, key: str) -> None:
    """A key that is no path below the directory is refused by every call that takes one."""
    place = tmp_path / "place"
    writer = PosixWriter(str(place))
    for call in (
        lambda: writer.put(key, b"x"),
        lambda: writer.begin(key, 1),
        lambda: writer.delete(key),
    ):
        with pytest.raises(Unsupported):
            call()
    assert list(tmp_path.iterdir()) == []


def test_no_symlink_leads_out_of_the_directory(tmp_path: Path) -> None:
    """A symlink where a folder should be is refused; one in a file's place is replaced."""
    place, outside = tmp_path / "place", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    (place / "folder").symlink_to(outside)
    (place / "file").symlink_to(outside / "file")
    writer = PosixWriter(str(place))
    with pytest.raises(FusefsError, match="symlink"):
        writer.put("folder/file", b"theirs")
    writer.delete("folder/file")  # there is no such file here
    writer.put("file", b"theirs")
    assert (outside / "file").read_bytes() == b"mine"
    assert (place / "file").read_bytes() == b"theirs"


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    """Where a folder has the file's name, or a file a folder's, one sentence says so."""
    writer = PosixWriter(str(tmp_path))
    writer.put("folder/file", b"x")
    with pytest.raises(Unsupported, match="folder where a file"):
        writer.put("folder", b"x")
    with pytest.raises(Unsupported, match="where a folder should be"):
        writer.put("folder/file/below", b"x")


def test_folders_come_and_go(tmp_path: Path) -> None:
    """The directory is made by the first write, and nothing of ours stays after the last delete."""
    place = tmp_path / "made" / "for" / "it"
    writer = PosixWriter(str(place))
    writer.put("a/b/c", b"x")
    writer.publish("")
    assert sorted(os.listdir(place)) == ["a"]
    writer.delete("a/b/c")
    assert os.listdir(place) == []


def test_files_have_the_modes_of_the_umask(tmp_path: Path) -> None:
    """What is published is for others to read: the umask decides, as with cp."""
    before = os.umask(0o027)
    try:
        PosixWriter(str(tmp_path)).put("folder/file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "folder/file").stat().st_mode & 0o777 == 0o640
