"""The stress: a small mount, a crowd of readers, pages that come and go, and a watcher.

The watcher is what it is for: no thread may go without progress for `PAUSE_MAX_S`. A thread that
does is told with the state of all processes, and the mount is aborted, so that nothing hangs on.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness.cgroup import Cgroup, open_cgroup
from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.harness.watchdog import tear_down
from tests.stress.board import Board

MIB = 1 << 20
PAUSE_MAX_S = 20.0
"""A read takes milliseconds; on busy cores, with 64 threads and reclaim, a second or two."""

PROCESSES = 16
THREADS = 4
SIZES = (1, 4097, MIB + 1, 9 * MIB - 1, 64 * MIB + 1, 140 * MIB + 12_345)
MOUNT_MEMORY = "32M"
MOUNT_LIMIT = 384 * MIB
"""For all processes of the mount and the pages they push: fewer than the files have."""
READERS_LIMIT = 448 * MIB
"""For 16 processes of some 12 MiB, and the pages of plain files and READs: fewer than they want."""
DROP_INTERVAL_S = 7.0
"""How often all clean pages of the machine are dropped."""


class Stuck(Exception):
    """A thread made no progress; the message says where everybody was."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run has done."""

    operations: int
    bytes: int
    wrong: int
    longest_s: float
    counters: dict[str, int]
    room_bytes: int
    killed: int

    def lines(self) -> list[str]:
        """For people."""
        counters = ("bytes_fetched", "bytes_read", "bytes_pushed", "pushed_pages_lost_bytes")
        plain = ("reads", "read_errors", "pushes_failed", "workers_replaced")
        return [
            f"operations      {self.operations}, of them wrong {self.wrong}",
            f"compared        {self.bytes // MIB} MiB",
            f"longest pause   {self.longest_s:.2f} s",
            f"killed for memory {self.killed}",
            f"room            {self.room_bytes // MIB} MiB",
            *(f"{name:<24}{self.counters[name] // MIB} MiB" for name in counters),
            *(f"{name:<24}{self.counters[name]}" for name in plain),
        ]


def run_stress(seconds: int) -> Report:
    """Stress a mount of its own for so long. Raises Stuck, or AssertionError as `open_mount`."""
    with (
        tempfile.TemporaryDirectory() as name,
        open_cgroup(MOUNT_LIMIT) as below,
        open_cgroup(READERS_LIMIT) as beside,
    ):
        plain = Path(name) / "plain"
        _make_files(plain)
        with open_mount(
            f"file://{plain}",
            "--memory",
            MOUNT_MEMORY,
            prefix_command=below.prefix_command,
            limit_s=seconds + 120.0,
            warnings_expected=True,
        ) as mounted:
            board = _new_board(Path(name) / "board")
            with _open_readers(mounted, plain, Path(name) / "board", beside, seconds) as readers:
                _watch(mounted, board, readers)
            status = mounted.status()
        rows = board.read_all()
        return Report(
            sum(row.operations for row in rows),
            sum(row.bytes for row in rows),
            sum(row.wrong for row in rows),
            max(row.longest_s for row in rows),
            status["counters"],
            status["page_cache"]["room_bytes"],
            below.killed() + beside.killed(),
        )


def _make_files(plain: Path) -> None:
    plain.mkdir()
    noise = random.Random(11)
    for size in SIZES:
        (plain / f"{size}.bin").write_bytes(noise.randbytes(size))
    (plain / "w.safetensors").write_bytes(noise.randbytes(130 * MIB + 5))


def _new_board(path: Path) -> Board:
    path.touch()
    board = Board(path, PROCESSES * THREADS)
    board.begin()
    return board


@contextmanager
def _open_readers(
    mounted: Mounted, plain: Path, board: Path, cgroup: Cgroup, seconds: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    fixed = [str(mounted.path), str(plain), str(board), str(PROCESSES * THREADS)]
    command = [*cgroup.prefix_command, sys.executable, "-m", "tests.stress.readers", *fixed]
    readers = [
        subprocess.Popen([*command, str(i * THREADS), str(THREADS), str(seconds)], cwd=ROOT)
        for i in range(PROCESSES)
    ]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def _watch(mounted: Mounted, board: Board, readers: list[subprocess.Popen[bytes]]) -> None:
    """Until all readers have ended; in between pages are dropped."""
    dropped_s = time.monotonic()
    while any(reader.poll() is None for reader in readers):
        time.sleep(0.1)
        now = time.monotonic()
        if now - dropped_s > DROP_INTERVAL_S:
            dropped_s = now
            Path("/proc/sys/vm/drop_caches").write_text("1")
        for number, row in enumerate(board.read_all()):
            alive = readers[number // THREADS].poll() is None
            if alive and now - row.at_s > PAUSE_MAX_S:
                where = _states([*mounted.pids(), *(reader.pid for reader in readers)])
                tear_down(mounted.path, mounted.marker)
                raise Stuck(f"thread {number} stands still for {now - row.at_s:.0f} s: {where}")
    statuses = [reader.returncode for reader in readers]
    assert statuses == [0] * PROCESSES, f"readers ended with {statuses}"


def _states(pids: list[int]) -> list[str]:
    """Each thread that waits in the kernel, and where."""
    found = []
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                if state == "D":
                    name = (task / "comm").read_text().strip()
                    found.append(f"{name} {task.name} {(task / 'wchan').read_text()}")
    return found
