"""What `file:///` promises beyond the contract: staying beneath, symlinks, odd files, bad days."""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
from pathlib import Path

import pytest

from fusefs.errors import (
    AccessDenied,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreTimeout,
    StoreUnavailable,
)
from fusefs.objects import Extent, ObjectId
from fusefs.store.posix import PosixStore, _translated

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory that holds one file, beside a file that is nobody's business."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "file").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    return directory


def names(directory: Path, prefix: str = "") -> set[str]:
    """All that a listing shows, objects and prefixes."""
    page = PosixStore(str(directory)).list_page(prefix, None)
    return {meta.id.key for meta in page.objects} | set(page.prefixes)


def read_all(directory: Path, key: str) -> bytes:
    """The bytes of a file, through the store."""
    store = PosixStore(str(directory))
    meta = store.head(key)
    memory = bytearray(meta.size)
    store.read_into(meta.id, Extent(0, meta.size), memoryview(memory))
    return bytes(memory)


def test_symlinks_to_files_beneath_are_files(source: Path) -> None:
    """A symlink to a regular file beneath is that file, as in a Hugging Face cache."""
    (source / "blobs").mkdir()
    (source / "blobs/0af3").write_bytes(b"weights")
    (source / "snapshots/main").mkdir(parents=True)
    (source / "snapshots/main/model.safetensors").symlink_to("../../blobs/0af3")
    (source / "chain").symlink_to("snapshots/main/model.safetensors")
    assert names(source, "snapshots/main/") == {"snapshots/main/model.safetensors"}
    assert read_all(source, "snapshots/main/model.safetensors") == b"weights"
    assert read_all(source, "chain") == b"weights"
    listed = PosixStore(str(source)).list_page("snapshots/main/", None).objects
    assert listed == (PosixStore(str(source)).head("snapshots/main/model.safetensors"),)


def test_nothing_leads_outside(source: Path, tmp_path: Path) -> None:
    """Symlinks out of the directory are hidden, and no key leads out of it."""
    (source / "up").symlink_to("../outside")
    (source / "absolute").symlink_to(tmp_path / "outside")
    (source / "inside-by-absolute").symlink_to(source / "file")
    (source / "magic").symlink_to("/proc/self/exe")
    (source / "loop").symlink_to("loop")
    (source / "dangling").symlink_to("nowhere")
    (source / "updir").symlink_to("..")
    assert names(source) == {"file"}
    store = PosixStore(str(source))
    hidden = ("up", "absolute", "inside-by-absolute", "magic", "loop", "dangling", "updir/outside")
    escapes = ("../outside", "a/../../outside", "/etc/passwd", ".", "..", "", "file/", "./file")
    for key in (*hidden, *escapes, "file\0", "f" * 300):
        with pytest.raises(ObjectNotFound):
            store.head(key)
        with pytest.raises(ObjectChanged):
            store.read_into(ObjectId(key, "0-0-0"), Extent(0, 1), memoryview(bytearray(1)))


def test_symlinks_to_directories_are_hidden(source: Path) -> None:
    """A symlink to a directory is not shown, and no key goes through it: no loops."""
    (source / "real").mkdir()
    (source / "real/file").write_bytes(b"x")
    (source / "link").symlink_to("real")
    (source / "real/self").symlink_to(".")
    assert names(source) == {"file", "real/"}
    assert names(source, "real/") == {"real/file"}
    assert names(source, "link/") == set()
    with pytest.raises(ObjectNotFound):
        PosixStore(str(source)).head("link/file")
    with pytest.raises(ObjectNotFound):
        PosixStore(str(source)).check("link/")


def test_what_is_no_file_is_hidden(source: Path) -> None:
    """FIFOs, sockets and symlinks to devices are hidden, and reading one does not hang."""
    os.mkfifo(source / "fifo")
    (source / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        assert names(source) == {"file"}
    store = PosixStore(str(source))
    for key in ("fifo", "null", "socket"):
        with pytest.raises(ObjectNotFound):
            store.head(key)
        with pytest.raises(FusefsError):
            store.read_into(ObjectId(key, "0-0-0"), Extent(0, 1), memoryview(bytearray(1)))


def test_names_of_any_bytes(source: Path) -> None:
    """A name that is not UTF-8 is listed by surrogateescape and read under that name."""
    (source / os.fsdecode(b"bad\xff\xfe")).write_bytes(b"bytes")
    (source / "back\\slash").write_bytes(b"slash")
    assert names(source) == {"file", "bad\udcff\udcfe", "back\\slash"}
    assert read_all(source, "bad\udcff\udcfe") == b"bytes"
    assert read_all(source, "back\\slash") == b"slash"
    with pytest.raises(ObjectNotFound):
        PosixStore(str(source)).head("half of a pair \ud800")


def test_a_file_changed_while_it_is_read(source: Path) -> None:
    """A writer that strikes between two pieces is noticed before anything of it is called final."""
    path = source / "large"
    path.write_bytes(b"a" * (3 * MIB))
    os.utime(path, ns=(0, 0))
    store = PosixStore(str(source))
    meta = store.head("large")
    memory = memoryview(bytearray(meta.size))
    reports: list[int] = []

    def landed(count: int) -> None:
        reports.append(count)
        with path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"b")

    with pytest.raises(ObjectChanged):
        store.read_into(meta.id, Extent(0, meta.size), memory, landed)
    assert reports == [MIB]
    assert bytes(memory[:MIB]) == b"a" * MIB


def test_a_file_cut_short(source: Path) -> None:
    """A truncated file is another version."""
    store = PosixStore(str(source))
    meta = store.head("file")
    (source / "file").write_bytes(b"")
    memory = bytearray(6)
    with pytest.raises(ObjectChanged):
        store.read_into(meta.id, Extent(0, 6), memoryview(memory))
    assert memory == bytes(6)


def test_a_directory_that_was_switched(tmp_path: Path) -> None:
    """If the source itself is a symlink, the store follows where it leads at each request."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    (tmp_path / "current").symlink_to("v1")
    assert read_all(tmp_path / "current", "file") == b"v1"
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    assert read_all(tmp_path / "current", "file") == b"v2"


def test_a_source_that_is_a_file(source: Path) -> None:
    """A SOURCE that names a file is refused with a sentence."""
    with pytest.raises(ObjectNotFound, match="a file where a directory should be"):
        PosixStore(str(source / "file")).check("")


def test_nothing_stays_open(source: Path) -> None:
    """No file descriptor is left behind, after success or failure."""
    store = PosixStore(str(source))
    (source / "link").symlink_to("file")
    meta = store.head("file")

    def use() -> None:
        store.check("")
        store.list_page("", None)
        store.read_into(meta.id, Extent(0, 6), memoryview(bytearray(6)))
        for key in ("link/x", "nope", "file/x"):
            with pytest.raises(ObjectNotFound):
                store.head(key)
        with pytest.raises(ObjectChanged):
            store.read_into(ObjectId("file", "no"), Extent(0, 6), memoryview(bytearray(6)))

    use()
    before = os.listdir("/proc/self/fd")
    use()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, ObjectNotFound),
        (errno.ENOTDIR, ObjectNotFound),
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.ETIMEDOUT, StoreTimeout),
        (errno.ESTALE, StoreUnavailable),
        (errno.EIO, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
    ],
)
def test_errors_are_translated(code: int, expected: type[FusefsError]) -> None:
    """Each errno of a network file system has its class, and the sentence names the file."""
    with pytest.raises(FusefsError) as raised, _translated("the file 'x'"):
        raise OSError(code, os.strerror(code))
    assert type(raised.value) is expected
    assert "the file 'x'" in str(raised.value)


def test_a_file_that_is_in_no_cache(source: Path) -> None:
    """Extents of any size and place are exact when they come from the disk, tail and all."""
    data = random.Random(5).randbytes(5 * MIB + 4097)
    path = source / "large"
    path.write_bytes(data)
    store = PosixStore(str(source))
    id = store.head("large").id
    extents = [
        Extent(0, len(data)),
        Extent(4 * MIB, len(data)),
        Extent(len(data) - 70_000, len(data)),
    ]
    dice = random.Random(6)
    for _ in range(30):
        start = dice.choice([dice.randrange(4 * MIB), dice.randrange(1024) * 4096])
        extents.append(Extent(start, start + dice.choice([100, 65536, 65537, MIB, MIB + 4096])))
    for extent in extents:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, 6 * MIB) as memory, memoryview(memory) as view:
            store.read_into(id, extent, view[: extent.size])
            assert view[: extent.size] == data[extent.start : extent.stop], extent
            assert view[extent.size] == 0, extent
    with pytest.raises(ObjectChanged):
        store.read_into(id, Extent(0, len(data) + 1), memoryview(bytearray(len(data) + 1)))


def test_a_file_of_more_than_5_gib(source: Path) -> None:
    """Sizes and offsets beyond 4 GiB are whole; the file is a hole but for its last bytes."""
    size = 6 << 30
    with (source / "large").open("wb") as file:
        file.seek(size - 6)
        file.write(b"at end")
    store = PosixStore(str(source))
    meta = store.head("large")
    assert meta.size == size
    assert meta in store.list_page("", None).objects
    memory = bytearray(10)
    store.read_into(meta.id, Extent(size - 10, size), memoryview(memory))
    assert memory == b"\0\0\0\0at end"
