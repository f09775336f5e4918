"""The memory that the arena lies in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.engine.shared_memory import map_shared_memory, open_shared_memory

MIB = 1 << 20


@pytest.mark.parametrize("size", [2 * MIB, 5 * MIB, 16 * MIB])
def test_what_one_mapping_writes_another_reads_to_the_last_byte(size: int) -> None:
    """All of it can be touched, and it begins as zeros."""
    memory = open_shared_memory(size)
    fd = memory.fd
    with map_shared_memory(fd) as one, map_shared_memory(fd) as other:
        assert len(one) == size
        assert one[:] == bytes(size)
        one[0], one[size - 1] = 1, 2
        assert (other[0], other[size - 1]) == (1, 2)
    os.close(fd)


def test_it_has_no_name_and_mounts_nothing() -> None:
    """Nothing appears in the list of mounts, and no path leads to it."""
    before = Path("/proc/self/mountinfo").read_text()
    fd = open_shared_memory(2 * MIB).fd
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_without_privileges_there_is_memory_all_the_same() -> None:
    """A user who may mount nothing gets a memfd of the same size."""
    program = (
        "import os; os.setgroups([]); os.setresgid(65534, 65534, 65534);"
        " os.setresuid(65534, 65534, 65534);"
        " memory = open_shared_memory(4 << 20); fd = memory.fd;"
        " print(os.readlink(f'/proc/self/fd/{fd}').split()[0],"
        " os.fstat(fd).st_size, memory.read_only_fd)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from fusefs.engine.shared_memory import *\n{program}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["/memfd:fusefs-arena", str(4 * MIB), "None"], done.stderr


REOPEN = """
import ctypes, mmap, os, sys
fd = int(sys.argv[1])
os.setgroups([]); os.setresgid(*[int(sys.argv[2])] * 3); os.setresuid(*[int(sys.argv[2])] * 3)
memory = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
assert memory[:5] == b"right", memory[:5]
ways = {
    "reopen for both": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
    "reopen for writing": lambda: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY),
    "map for writing": lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    "write": lambda: os.pwrite(fd, b"wrong", 0),
    "truncate": lambda: os.ftruncate(fd, 0),
    "change the mode": lambda: os.fchmod(fd, 0o666),
    "punch a hole": lambda: memory.madvise(mmap.MADV_REMOVE),
    "allocate": lambda: os.posix_fallocate(fd, 0, 1 << 30),
}
for name, way in ways.items():
    try:
        way()
    except (OSError, ValueError):
        continue
    print(name)
libc = ctypes.CDLL(None)
clear = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
if libc.syscall(442, fd, b"", 0x1000, clear, 32) == 0:
    print("make the mount writable")
if libc.syscall(428, fd, b"", 0x1001) >= 0:
    print("clone the mount")
"""


@pytest.mark.parametrize("uid", [0, 65534], ids=["root", "another user"])
def test_nobody_writes_through_what_is_handed_out(uid: int) -> None:
    """Whoever gets the read-only descriptor, root included, finds no way to write by it."""
    memory = open_shared_memory(2 * MIB)
    assert memory.read_only_fd is not None
    os.pwrite(memory.fd, b"right", 0)
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", REOPEN, str(memory.read_only_fd), str(uid)],
        pass_fds=[memory.read_only_fd],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert os.pread(memory.fd, 5, 0) == b"right"
    os.close(memory.read_only_fd)
    os.close(memory.fd)
