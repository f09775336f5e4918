"""What a machine or a container gives us, told from files laid out as Linux does."""

from __future__ import annotations

from pathlib import Path

from fusefs.engine.machine import memory_available, page_cache_room

GIB = 1 << 30
TOTAL_KIB, AVAILABLE_KIB = 64 << 20, 40 << 20


def machine(root: Path, cgroup: str) -> Path:
    """A machine with 64 GiB, of which 40 are available, and us in `cgroup`."""
    (root / "proc/self").mkdir(parents=True)
    meminfo = f"MemTotal: {TOTAL_KIB} kB\nMemFree: 1 kB\nMemAvailable: {AVAILABLE_KIB} kB\n"
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def write(directory: Path, **files: str) -> None:
    """Files of a cgroup; "__" in a name stands for a dot."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    """All of its memory, and half of what is available for pages."""
    root = machine(tmp_path, "0::/\n")
    write(root / "sys/fs/cgroup")
    assert memory_available(root) == 64 * GIB
    assert page_cache_room(root) == 20 * GIB


def test_v2_the_tightest_level_counts_without_what_it_must_keep(tmp_path: Path) -> None:
    """Anonymous and shared memory cannot be dropped for pages; page cache can."""
    root = machine(tmp_path, "0::/pods/one\n")
    base = root / "sys/fs/cgroup"
    write(base / "pods/one", memory__max="max\n")
    stat = f"anon {GIB}\nfile {7 * GIB}\nshmem {GIB}\nsock 0\ninactive_file {GIB}\n"
    write(base / "pods", memory__max=f"{8 * GIB}\n", memory__stat=stat)
    assert memory_available(root) == 8 * GIB
    assert page_cache_room(root) == 3 * GIB


def test_v1_the_sums_over_children_count(tmp_path: Path) -> None:
    """The memory controller's own hierarchy, with total_rss and total_shmem."""
    cgroup = "4:memory:/box\n3:cpu,cpuacct:/other\n0::/\n"
    root = machine(tmp_path, cgroup)
    base = root / "sys/fs/cgroup/memory"
    write(base, memory__limit_in_bytes="9223372036854771712\n", memory__stat="total_rss 0\n")
    stat = f"rss 5\ncache {GIB}\ntotal_rss {GIB}\ntotal_shmem {GIB}\ntotal_cache {3 * GIB}\n"
    write(base / "box", memory__limit_in_bytes=f"{4 * GIB}\n", memory__stat=stat)
    assert memory_available(root) == 4 * GIB
    assert page_cache_room(root) == GIB


def test_a_full_group_has_no_room(tmp_path: Path) -> None:
    """More kept than the limit leaves nothing, and never less than nothing."""
    root = machine(tmp_path, "0::/box\n")
    stat = f"anon {2 * GIB}\nshmem 4096\n"
    write(root / "sys/fs/cgroup/box", memory__max=f"{2 * GIB}\n", memory__stat=stat)
    assert page_cache_room(root) == 0


def test_a_container_that_cannot_see_its_own_path_counts_what_it_sees(tmp_path: Path) -> None:
    """The path in /proc/self/cgroup may be the host's: then the levels that exist count."""
    root = machine(tmp_path, "0::/not/seen/from/here\n")
    stat = "anon 0\nshmem 0\n"
    write(root / "sys/fs/cgroup", memory__max=f"{6 * GIB}\n", memory__stat=stat)
    assert memory_available(root) == 6 * GIB
    assert page_cache_room(root) == 3 * GIB
