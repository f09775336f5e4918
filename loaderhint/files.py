"""The files a loader names: found, opened, and the headers of the safetensors among them read.

The one idea: a file is its open descriptor. Paths differ between containers and may be replaced;
the descriptor pins one version of the bytes for as long as the loader works with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loaderhint.header import LENGTH_BYTES, Header, HeaderError, parse_header, read_length

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

SUFFIX = ".safetensors"

_INDEX = "model.safetensors.index.json"

_HEAD_BYTES = 128 << 10
"""What is read first of a file: the whole header of most shards in one round trip."""

_HEADER_THREADS = 16
"""On a cold mount each header costs a round trip to the bucket, 25 ms or more; models have up to
some hundred shards."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One open file. `device` and `inode` are those of stat(2)."""

    path: str
    fd: int
    device: int
    inode: int
    size_bytes: int


def expand_paths(paths: Paths) -> list[str]:
    """The files that `paths` mean, in the order given.

    A folder means the shards that its `model.safetensors.index.json` names, else all of its
    `*.safetensors`; `-2-of-10` before `-10-of-10`. One without any means all of its files.
    Subfolders are not looked into. Raises OSError.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    files: list[str] = []
    for path in [os.fspath(path) for path in paths]:
        if os.path.isdir(path):
            files += _files_of_folder(path)
        else:
            files.append(path)
    return files


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A sort key that reads numbers as numbers."""
    pieces = _DIGITS.split(name)
    return [(0, int(piece)) if number % 2 else (1, piece) for number, piece in enumerate(pieces)]


@contextmanager
def open_files(paths: Paths) -> Iterator[list[OpenFile]]:
    """Open every file that `paths` mean, close them at the end. Raises OSError."""
    files: list[OpenFile] = []
    try:
        for path in expand_paths(paths):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
            except OSError:
                os.close(fd)
                raise
            files.append(OpenFile(path, fd, status.st_dev, status.st_ino, status.st_size))
        yield files
    finally:
        for file in files:
            os.close(file.fd)


def read_header(file: OpenFile) -> Header:
    """The header of an open safetensors file. Raises OSError, HeaderError naming the file."""
    try:
        head = _pread(file.fd, min(_HEAD_BYTES, file.size_bytes), 0)
        stop = _header_stop(head, file.size_bytes)
        if stop > len(head):
            head += _pread(file.fd, stop - len(head), len(head))
        return parse_header(head[LENGTH_BYTES:stop], file.size_bytes)
    except HeaderError as error:
        raise HeaderError(f"{file.path} is not a safetensors file: {error}") from error


def read_headers(files: Sequence[OpenFile]) -> list[Header]:
    """The headers of `files`, read at the same time. Raises OSError, HeaderError."""
    if len(files) <= 1:
        return [read_header(file) for file in files]
    from concurrent.futures import ThreadPoolExecutor  # costs an import a few milliseconds

    with ThreadPoolExecutor(min(_HEADER_THREADS, len(files)), "loaderhint-header") as pool:
        return list(pool.map(read_header, files))


def _files_of_folder(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    shards = [name for name in names if name.endswith(SUFFIX)]
    if _INDEX in names:
        # Some folders hold the model twice, in one file and in shards: the index says which.
        indexed = _indexed(os.path.join(folder, _INDEX))
        shards = [name for name in shards if name in indexed] or shards
    return [os.path.join(folder, name) for name in sorted(shards or names, key=natural_order)]


def _indexed(path: str) -> frozenset[str]:
    """The files that an index names; none if it is not understood."""
    try:
        with open(path, "rb") as file:
            names = json.load(file)["weight_map"].values()
        return frozenset(name for name in names if isinstance(name, str))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return frozenset()


def _header_stop(head: bytes, size_bytes: int) -> int:
    stop = LENGTH_BYTES + read_length(head[:LENGTH_BYTES])
    if stop > size_bytes:
        raise HeaderError("the header ends behind the end of the file")
    return stop


def _pread(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    pieces = []
    while size > 0 and (piece := os.pread(fd, size, offset)):
        pieces.append(piece)
        size -= len(piece)
        offset += len(piece)
    return b"".join(pieces)
