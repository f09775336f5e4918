"""Sentences of docs/semantics.md, family by family of system calls, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.harness.weed import Weed

MIB = 1 << 20
SIZE = 2 * MIB + 77
"""Ends in the middle of a page."""

SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE
FS_IOC_GETFLAGS, FS_IOC_FIEMAP = 0x80086601, 0xC020660B
"""Of <linux/fs.h>."""

EVENT_BOUND_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, a file, an empty one, and a folder."""
    folder = tmp_path_factory.mktemp("semantics")
    (folder / "sub").mkdir()
    (folder / "file").write_bytes(os.urandom(SIZE))
    (folder / "empty").touch()
    program = folder / "sub" / "program"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o4755)
    return folder


@pytest.fixture(scope="module")
def root(source: Path) -> Iterator[Path]:
    """The mount of it."""
    with open_mount(f"file://{source}") as mounted:
        yield mounted.path


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor, closed at the end."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def number_of(attempt: Callable[[], object]) -> int | None:
    """The errno an attempt ends with, None if it succeeds."""
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def test_ways_to_open(root: Path) -> None:
    """Flags that write are refused, flags that only might are accepted."""
    wanted = {
        os.O_RDONLY: None,
        os.O_APPEND: None,
        os.O_SYNC: None,
        os.O_NOATIME: None,
        os.O_PATH: None,
        os.O_DIRECT: None,
        os.O_NONBLOCK: None,
        os.O_CREAT: None,
        os.O_CREAT | os.O_EXCL: errno.EEXIST,
        os.O_TRUNC: errno.EROFS,
        os.O_WRONLY: errno.EROFS,
        os.O_RDWR: errno.EROFS,
        os.O_DIRECTORY: errno.ENOTDIR,
    }

    def attempt(flags: int) -> None:
        with opened(root / "file", flags):
            pass

    assert {flags: number_of(partial(attempt, flags)) for flags in wanted} == wanted
    assert number_of(lambda: os.open(root, os.O_TMPFILE | os.O_RDWR)) == errno.EROFS
    assert number_of(lambda: os.open(root / "sub", os.O_WRONLY)) == errno.EISDIR


def test_what_needs_a_writable_descriptor(root: Path) -> None:
    """Calls that write through a descriptor fail as on any descriptor that was opened to read."""
    with opened(root / "file") as fd:
        assert number_of(lambda: os.write(fd, b"x")) == errno.EBADF
        assert number_of(lambda: os.posix_fallocate(fd, 0, 10)) == errno.EBADF
        assert number_of(lambda: os.ftruncate(fd, 0)) == errno.EINVAL
        for attempt in (
            lambda: os.fchmod(fd, 0o777),
            lambda: os.fchown(fd, 1, 1),
            lambda: os.utime(fd),
        ):
            assert number_of(attempt) == errno.EROFS


def test_syncing_succeeds(root: Path) -> None:
    """fsync, fdatasync and syncfs have nothing to do, and say so by succeeding."""
    for path in (root / "file", root):
        with opened(path) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
            assert _libc.syncfs(fd) == 0


def test_pipes_and_copies(root: Path, source: Path, tmp_path: Path) -> None:
    """Splice and sendfile read; copy_file_range is EXDEV, as from any other file system."""
    want = (source / "file").read_bytes()
    reader, writer = os.pipe()
    with opened(root / "file") as fd, opened(tmp_path / "copy", os.O_CREAT | os.O_WRONLY) as copy:
        try:
            assert os.read(reader, os.splice(fd, writer, 4096, offset_src=5)) == want[5:4101]
            assert os.read(reader, os.sendfile(writer, fd, 9, 100)) == want[9:109]
        finally:
            os.close(reader)
            os.close(writer)
        assert number_of(lambda: os.copy_file_range(fd, copy, 4096, 0)) == errno.EXDEV
        assert (
            number_of(lambda: os.preadv(fd, [bytearray(9)], 0, os.RWF_NOWAIT)) == errno.EOPNOTSUPP
        )
    subprocess.run(["cp", root / "file", tmp_path / "cp"], check=True, timeout=60)
    assert (tmp_path / "cp").read_bytes() == want


def test_seeking(root: Path) -> None:
    """A file is data from end to end: SEEK_DATA and SEEK_HOLE know no holes."""
    with opened(root / "file") as fd:
        assert os.lseek(fd, 5, SEEK_DATA) == 5
        assert os.lseek(fd, 5, SEEK_HOLE) == SIZE
        assert number_of(lambda: os.lseek(fd, SIZE, SEEK_DATA)) == errno.ENXIO
        assert os.pread(fd, 10, 1 << 40) == b""
        assert number_of(lambda: os.pread(fd, 10, -1)) == errno.EINVAL


def test_locks_hold_among_processes_of_this_machine(root: Path) -> None:
    """Flock and shared fcntl locks work on this machine; exclusive fcntl locks need writing."""
    script = (
        "import fcntl, sys\nfile = open(sys.argv[1])\n"
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    command = [sys.executable, "-c", script, str(root / "file")]
    with opened(root / "file") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        held = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert b"BlockingIOError" in held.stderr
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert number_of(lambda: fcntl.lockf(fd, fcntl.LOCK_EX)) == errno.EBADF


def test_mappings(root: Path, source: Path) -> None:
    """A mapping may be private and written, or executed; shared and written it is EACCES."""
    want = (source / "file").read_bytes()
    with opened(root / "file") as fd:
        private = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[0] = want[0] ^ 1
        assert os.pread(fd, 1, 0) == want[:1]
        private.close()
        mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        number = number_of(
            lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        )
        assert number == errno.EACCES


def test_the_rest_of_the_last_page_is_zeros(root: Path, source: Path) -> None:
    """Behind the end of a file, its last page holds zeros, and the page after it is SIGBUS."""
    script = (
        "import ctypes, mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "libc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "pages = -(-os.fstat(fd).st_size // 4096)\n"
        "at = libc.mmap(None, ctypes.c_size_t((pages + 1) * 4096), 1, 2, fd, ctypes.c_long(0))\n"
        "last = ctypes.string_at(at + (pages - 1) * 4096, 4096)\n"
        "assert last[os.fstat(fd).st_size % 4096:].strip(b'\\0') == b''\n"
        "print('zeros', flush=True)\n"
        "ctypes.string_at(at + pages * 4096, 1)"
    )
    command = [sys.executable, "-c", script, str(root / "file")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"zeros\n", done.stderr
    assert done.returncode == -signal.SIGBUS


def test_programs_do_not_start(root: Path) -> None:
    """No file is executable, and set-user-id bits and devices would count for nothing."""
    program = root / "sub" / "program"
    assert stat.S_IMODE(program.stat().st_mode) == 0o444
    assert not os.access(program, os.X_OK)
    assert number_of(lambda: subprocess.run([program], check=False)) == errno.EACCES
    flags = os.statvfs(root).f_flag
    assert flags & os.ST_NOSUID and flags & os.ST_NODEV and flags & os.ST_RDONLY
    done = subprocess.run(["sh", program], capture_output=True, timeout=60, check=False)
    assert done.stdout == b"started\n"


def test_access(root: Path) -> None:
    """access(2) tells root, too, that nothing can be written."""
    for path in (root, root / "sub", root / "file"):
        assert os.access(path, os.R_OK)
        assert not os.access(path, os.W_OK)


def test_times(root: Path, source: Path) -> None:
    """All three times of a file are the object's; reading changes none of them."""
    before = (root / "file").stat()
    (root / "file").read_bytes()
    after = (root / "file").stat()
    assert before.st_atime_ns == before.st_mtime_ns == before.st_ctime_ns
    assert before.st_mtime_ns == (source / "file").stat().st_mtime_ns
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert (root / "file").stat().st_nlink == 1
    assert (root / "sub").stat().st_nlink == 2


def test_directories(root: Path) -> None:
    """A directory is read by readdir alone, from the start again after rewinddir; its size is 0."""
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert number_of(lambda: os.read(fd, 1)) == errno.EISDIR
        first = sorted(os.listdir(fd))
        os.lseek(fd, 0, os.SEEK_SET)
        assert sorted(os.listdir(fd)) == first == ["empty", "file", "sub"]
    assert root.stat().st_size == 0
    before = Path.cwd()
    os.chdir(root / "sub")
    try:
        assert Path.cwd() == root / "sub"
        assert os.listdir("..") == os.listdir(root)
    finally:
        os.chdir(before)


def test_paths(root: Path) -> None:
    """Paths follow Linux's limits and rules: 4,096 bytes, and no slash behind a file."""
    assert number_of(lambda: os.stat(f"{root}{'/x' * 2100}")) == errno.ENAMETOOLONG
    assert number_of(lambda: os.stat(f"{root}/file/")) == errno.ENOTDIR
    assert number_of(lambda: os.readlink(root / "file")) == errno.EINVAL


def test_which_refusal_comes_first(root: Path, tmp_path: Path) -> None:
    """What exists is EEXIST for mkdir; to remove or rename what does not exist is EROFS already."""
    assert number_of(lambda: os.mkdir(root / "sub")) == errno.EEXIST
    assert number_of(lambda: os.unlink(root / "absent")) == errno.EROFS
    assert number_of(lambda: os.rename(root / "absent", root / "new")) == errno.EROFS
    assert number_of(lambda: os.mknod(root / "new", stat.S_IFCHR | 0o600, 0)) == errno.EROFS
    assert number_of(lambda: os.rmdir(root)) == errno.EBUSY
    assert number_of(lambda: os.link(root / "file", tmp_path / "link")) == errno.EXDEV


def test_attributes_of_others(root: Path) -> None:
    """No access control lists and no capabilities: ENODATA; to set any attribute is EROFS."""
    for name in ("system.posix_acl_access", "security.capability", "trusted.any", "user.any"):
        assert number_of(partial(os.getxattr, root / "file", name)) == errno.ENODATA
    assert os.listxattr(root / "file") == []
    assert number_of(lambda: os.setxattr(root / "file", "user.any", b"")) == errno.EROFS


def test_ioctls(root: Path) -> None:
    """There are no flags of inodes and no maps of extents: ENOTTY and EOPNOTSUPP."""
    with opened(root / "file") as fd:
        assert number_of(lambda: fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))) == errno.ENOTTY
        assert number_of(lambda: fcntl.ioctl(fd, FS_IOC_FIEMAP, bytes(32))) == errno.EOPNOTSUPP


def test_waiting_for_a_file(root: Path) -> None:
    """Poll and epoll say that a file is ready, always."""
    with opened(root / "file") as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == [(fd, select.POLLIN)]


def test_watching_tells_of_this_machine_alone(tmp_path: Path) -> None:
    """Inotify tells what processes do on the mount, and nothing of what happens in the bucket."""
    (tmp_path / "file").write_bytes(b"old")
    with open_mount(f"file://{tmp_path}", "--set", "tree.ttl_s=0") as mounted:
        watch = _libc.inotify_init1(os.O_NONBLOCK)
        try:
            everything = 0x00000FFF
            assert _libc.inotify_add_watch(watch, os.fsencode(mounted.path), everything) > 0
            (tmp_path / "more").write_bytes(b"new")
            (tmp_path / "file").write_bytes(b"newer")
            until = time.monotonic() + EVENT_BOUND_S
            while sorted(os.listdir(mounted.path)) != ["file", "more"]:  # the mount knows by now
                assert time.monotonic() < until
            seen = os.read(watch, 65536)
            (mounted.path / "more").read_bytes()
            assert b"more" not in seen and b"file" not in seen
            assert b"more" in os.read(watch, 65536)
        finally:
            os.close(watch)


def test_a_handle_shows_its_own_version(weed: Weed, bucket: str) -> None:
    """Fstat of an open file, and pages of it that were read, stay those of the old version."""
    client = weed.client()
    client.put_object(Bucket=bucket, Key="object", Body=b"a" * 5000)
    options = ("--set", "tree.ttl_s=0", "--set", "tree.negative_ttl_s=0")
    with (
        open_mount(f"s3://{bucket}", *options, environment=weed.environment) as mounted,
        (mounted.path / "object").open("rb", buffering=0) as old,
    ):
        mapping = mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ)
        try:
            assert mapping[:] == b"a" * 5000
            client.put_object(Bucket=bucket, Key="object", Body=b"b" * 7)
            wait_for_size(mounted, "object", 7)
            assert (mounted.path / "object").read_bytes() == b"b" * 7
            assert os.fstat(old.fileno()).st_size == 5000
            assert mapping[:] == b"a" * 5000
            assert os.fstat(old.fileno()).st_ino != (mounted.path / "object").stat().st_ino
        finally:
            mapping.close()


def wait_for_size(mounted: Mounted, name: str, size: int) -> None:
    """Until the name means the new version: the kernel believes it for a second at most."""
    until = time.monotonic() + EVENT_BOUND_S
    while (mounted.path / name).stat().st_size != size:
        assert time.monotonic() < until, "the new version never came"
        time.sleep(0.05)


def test_an_error_in_a_mapped_page_is_sigbus(tmp_path: Path) -> None:
    """A page of a version that is gone cannot be had: touching it is SIGBUS, reading it ESTALE."""
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    script = (
        "import mmap, os, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print('mapped', flush=True)\nsys.stdin.readline()\n"
        "try:\n    os.pread(file.fileno(), 1, 40 << 20)\n"
        "except OSError as error:\n    print(error.errno, flush=True)\n"
        "mapping[48 << 20]\n"
    )
    with open_mount(f"file://{tmp_path}", warnings_expected=True) as mounted:
        reader = subprocess.Popen(
            [sys.executable, "-c", script, str(mounted.path / "file")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"mapped\n"
            (tmp_path / "new").write_bytes(bytes(64 * MIB))
            (tmp_path / "new").rename(tmp_path / "file")
            said, _ = reader.communicate(b"\n", timeout=60)
        finally:
            reader.kill()
            reader.wait()
    assert said.split() == [str(errno.ESTALE).encode()]
    assert reader.returncode == -signal.SIGBUS


def test_names_of_the_longest(weed: Weed, bucket: str) -> None:
    """A name may have 255 bytes; a key with a longer segment is hidden, and the rest is shown."""
    client = weed.client()
    longest = "é" * 127 + "x"
    for key in (longest, "deep/" * 40 + "file"):
        client.put_object(Bucket=bucket, Key=key, Body=b"here")
    with open_mount(f"s3://{bucket}", environment=weed.environment) as mounted:
        assert sorted(os.listdir(mounted.path)) == ["deep", longest]
        assert (mounted.path / longest).read_bytes() == b"here"
        assert (mounted.path / ("deep/" * 40) / "file").read_bytes() == b"here"
        assert number_of(lambda: os.stat(mounted.path / f"{longest}x")) == errno.ENAMETOOLONG
