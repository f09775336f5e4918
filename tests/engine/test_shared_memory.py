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
    fd = open_shared_memory(size)
    with map_shared_memory(fd) as one, map_shared_memory(fd) as other:
        assert len(one) == size
        assert one[:] == bytes(size)
        one[0], one[size - 1] = 1, 2
        assert (other[0], other[size - 1]) == (1, 2)
    os.close(fd)


def test_it_has_no_name_and_mounts_nothing() -> None:
    """Nothing appears in the list of mounts, and no path leads to it."""
    before = Path("/proc/self/mountinfo").read_text()
    fd = open_shared_memory(2 * MIB)
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_without_privileges_there_is_memory_all_the_same() -> None:
    """A user who may mount nothing gets a memfd of the same size."""
    program = (
        "import os; os.setgroups([]); os.setresgid(65534, 65534, 65534);"
        " os.setresuid(65534, 65534, 65534);"
        " fd = open_shared_memory(4 << 20);"
        " print(os.readlink(f'/proc/self/fd/{fd}').split()[0], os.fstat(fd).st_size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from fusefs.engine.shared_memory import *\n{program}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["/memfd:fusefs-arena", str(4 * MIB)], done.stderr
