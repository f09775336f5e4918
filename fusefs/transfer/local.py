"""The folder that is pushed: its files, that they are sound, and what their bytes hash to.

Symlinks to files are followed as the Hugging Face cache has them, into the folder itself or into
the `blobs` beside `snapshots`; one that leads elsewhere is refused, since publishing what a link
in a downloaded model points to is how secrets leave a machine.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from fusefs.errors import FusefsError, ObjectChanged
from fusefs.transfer.crew import Crew
from fusefs.transfer.hashing import hash_and_sum
from fusefs.transfer.manifest import FileRow
from fusefs.transfer.progress import Progress

LEFT_OUT = frozenset({".fusefs", ".fusefs-pull", ".git", ".cache"})
"""Ours, git's, and the notes that huggingface_hub keeps in a folder it downloaded to."""

KEY_BYTES_MAX = 1024
"""What Amazon, Google and Azure take; a directory takes longer ones."""

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file as it was when the folder was looked at."""

    name: str
    path: str
    size: int
    stamp: tuple[int, int, int]
    """mtime in ns, size, inode."""


def scan(folder: str) -> tuple[list[LocalFile], list[str]]:
    """The files below `folder` by name, and the names that are left out.

    Raises `FusefsError` with one sentence for what cannot be pushed.
    """
    if not os.path.isdir(folder):
        raise FusefsError(f"{folder} is not a folder: name the folder that holds the model")
    root = os.path.realpath(folder)
    reach = _reach(root)
    files: list[LocalFile] = []
    left_out: list[str] = []
    for entry in _walk(root, left_out):
        files.append(_file(root, reach, entry))
    return sorted(files, key=lambda file: file.name), sorted(left_out)


def check_keys(prefix: str, files: list[LocalFile]) -> None:
    """Raise `FusefsError` if a bucket, other than a directory, cannot hold a name."""
    for file in files:
        try:
            size = len((prefix + file.name).encode("utf-8"))
        except UnicodeEncodeError as error:
            raise FusefsError(f"{file.path!r} has a name that is not UTF-8: rename it") from error
        if size > KEY_BYTES_MAX:
            raise FusefsError(
                f"{file.path!r} would be a key of {size} bytes, and buckets take {KEY_BYTES_MAX}:"
                " rename it"
            )


def check_apart(folder: str, destination: str) -> None:
    """Raise `FusefsError` if a directory that is pushed to lies in the folder that is pushed."""
    root, there = os.path.realpath(folder), os.path.realpath(destination)
    if os.path.commonpath([root, there]) == root:
        raise FusefsError(f"{destination} lies in {folder} itself: choose another place")


def open_unchanged(file: LocalFile) -> int:
    """A descriptor of the file. Raises `ObjectChanged` if it is another than was looked at."""
    try:
        file_fd = os.open(file.path, _READ_FLAGS)
    except OSError as error:
        raise ObjectChanged(f"{file.path!r} cannot be read any more: {error.strerror}") from error
    try:
        check_unchanged(file, file_fd)
    except BaseException:
        os.close(file_fd)
        raise
    return file_fd


def check_unchanged(file: LocalFile, file_fd: int) -> None:
    """Raise `ObjectChanged` if the open file, or what has its name now, is not as it was."""
    try:
        unchanged = _stamp(os.fstat(file_fd)) == _stamp(os.stat(file.path)) == file.stamp
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        raise ObjectChanged(f"{file.path!r} was changed meanwhile: push it when it is at rest")


def hash_all(
    files: list[LocalFile], crew: Crew, progress: Progress
) -> tuple[list[FileRow], dict[str, bytes]]:
    """The rows of all files, in their order, and by name the CRCs of their pieces."""
    progress.begin("hashing", sum(file.size for file in files))
    rows: dict[str, FileRow] = {}
    crcs: dict[str, bytes] = {}
    lock = threading.Lock()

    def told(count: int) -> None:
        crew.check()
        with lock:
            progress.advance(count)

    def hash_one(file: LocalFile) -> None:
        file_fd = open_unchanged(file)
        try:
            sha256, crcs[file.name] = hash_and_sum(file_fd, told)
            check_unchanged(file, file_fd)
        finally:
            os.close(file_fd)
        rows[file.name] = FileRow(file.name, file.size, sha256)

    crew.run(partial(hash_one, file) for file in files)
    return [rows[file.name] for file in files], crcs


def _walk(root: str, left_out: list[str]) -> Iterator[os.DirEntry[str]]:
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name in LEFT_OUT:
                    left_out.append(os.path.relpath(entry.path, root))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def _file(root: str, reach: str, entry: os.DirEntry[str]) -> LocalFile:
    path = entry.path
    if entry.is_symlink():
        target = os.path.realpath(path)
        if not os.path.exists(target):
            raise FusefsError(f"{path!r} is a symlink to nothing: remove it, or fetch its target")
        if os.path.commonpath([target, reach]) != reach:
            raise FusefsError(
                f"{path!r} is a symlink out of the folder, to {target!r}: put a copy in its place"
            )
        if os.path.isdir(target):
            raise FusefsError(f"{path!r} is a symlink to a folder: put the folder in its place")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FusefsError(f"{path!r} is neither a file nor a folder: remove it")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise FusefsError(f"{path!r} may not be read by user {os.geteuid()}")
    # Keys are UTF-8 whatever the locale is.
    name = os.fsencode(os.path.relpath(path, root)).decode("utf-8", "surrogateescape")
    return LocalFile(name, path, status.st_size, _stamp(status))


def _reach(root: str) -> str:
    """Where symlinks may lead: the folder, or its repository in the Hugging Face cache."""
    above = os.path.dirname(root)
    if os.path.basename(above) == "snapshots" and os.path.isdir(os.path.join(above, "../blobs")):
        return os.path.dirname(above)
    return root


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_mtime_ns, status.st_size, status.st_ino)
