"""What the machine says of its cores."""

from __future__ import annotations

import os
from pathlib import Path

from fusefs.engine.machine import Cores

WORKER = 4711


def write(root: Path, all_cores: str, ours: int, worker: int) -> None:
    (root / "proc/stat").write_text(f"cpu  {all_cores}\ncpu0 1 1 1 1\n")
    for pid, ticks in ((os.getpid(), ours), (WORKER, worker)):
        (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
        line = f"{pid} (a ) name) S 1 2 3 4 5 6 7 8 9 10 {ticks} 2 0 0 20 0 1 0 5"
        (root / f"proc/{pid}/stat").write_text(line)


def test_cores_are_full_of_us(tmp_path: Path) -> None:
    """Nearly no idle time since the last look, and half of it ours."""
    (tmp_path / "proc").mkdir()
    cores = Cores(lambda: [WORKER, WORKER + 1], tmp_path)
    write(tmp_path, "1000 0 1000 7000 500 0 0 0 0 0", 100, 100)
    assert not cores.are_full()
    write(tmp_path, "1500 0 1480 7010 510 0 0 0 0 0", 400, 350)
    assert cores.are_full()
    write(tmp_path, "2000 0 1960 7020 520 0 0 0 0 0", 500, 450)
    assert not cores.are_full(), "others use them"
    write(tmp_path, "2400 0 2360 7120 620 0 0 0 0 0", 800, 850)
    assert not cores.are_full(), "a fifth of the time was idle, or waited for disks"
    assert not cores.are_full(), "no time has passed"


def test_this_machine_can_be_asked() -> None:
    """The real files are read; since the boot it has not been full of us."""
    assert not Cores(list).are_full()
