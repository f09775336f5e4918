"""Mount, load, unmount, many times, from one process: `python -m tests.soak.cycles N PLAIN MNT`.

Started by `run_cycles` inside a memory cgroup of its own. The one idea: the process that mounts
lives through all cycles, as a node's driver does, so that what it loses shows too; and the kernel's
memory shows in what is billed to the cgroup.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from fusefs.cli.start import mount_in_background
from fusefs.config import config_from_json_dict
from fusefs.mount import kernel
from tests.harness.cgroup import Cgroup, open_cgroup
from tests.harness.memory import MARKER
from tests.harness.mounted import ROOT, wait_ended
from tests.harness.watchdog import tear_down
from tests.soak.footprint import own_descriptors, slope

MIB = 1 << 20
LIMIT = 1024 * MIB
"""Of the cgroup: four times what a mount of this size takes."""

CONFIG = {"engine": {"memory": 32 * MIB}}
CYCLE_MAX_S = 60.0
"""On the average, on a busy machine; a cycle takes one second on an idle one."""

WARM_CYCLES = 5
"""First: imported modules, the pools of the kernel."""

LOOK_EVERY = 5
"""Cycles between two looks at memory. For a look the kernel has to drop what it can: the names of
each process below /proc alone are 100 KiB a cycle."""

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_GONE_WITHIN_S = 10.0


@dataclass(slots=True)
class Report:
    """What was left after the cycles. `…_bytes` are of every fifth, `…_slope` for each cycle."""

    cycles: int = 0
    seconds: float = 0.0
    longest_s: dict[str, float] = field(default_factory=dict)
    wrong: int = 0
    left: list[str] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    own_bytes: list[int] = field(default_factory=list)
    billed_bytes: list[int] = field(default_factory=list)

    def took(self, part: str, since_s: float) -> float:
        """A part of a cycle has ended; returns the time."""
        now = time.monotonic()
        self.longest_s[part] = max(self.longest_s.get(part, 0.0), now - since_s)
        return now

    @property
    def own_slope(self) -> float:
        """Memory of the process that mounts."""
        return slope(self.own_bytes) / LOOK_EVERY

    @property
    def billed_slope(self) -> float:
        """Memory of the whole cgroup, the kernel's included."""
        return slope(self.billed_bytes) / LOOK_EVERY

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"cycles            {self.cycles}, {self.seconds / max(1, self.cycles):.2f} s each",
            f"longest, s        { {part: round(s, 1) for part, s in self.longest_s.items()} }",
            f"wrong bytes       {self.wrong}",
            f"left behind       {self.left[:10] or 'nothing'}",
            f"own descriptors   {self.descriptors[0]} -> {self.descriptors[-1]}",
            f"own memory        {self.own_bytes[0] / MIB:.1f} ->"
            f" {self.own_bytes[-1] / MIB:.1f} MiB, {self.own_slope / 1024:+.2f} KiB a cycle",
            f"billed memory     {self.billed_bytes[0] / MIB:.1f} ->"
            f" {self.billed_bytes[-1] / MIB:.1f} MiB, {self.billed_slope / 1024:+.2f} KiB a cycle",
        ]


def run_cycles(cycles: int, plain: Path) -> Report:
    """Run them over the files of the folder `plain`. AssertionError if that process fails."""
    marker = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name, open_cgroup(LIMIT) as cgroup:
        mountpoint = Path(name) / "mnt"
        mountpoint.mkdir()
        (Path(name) / "tmp").mkdir()
        command = [sys.executable, "-m", "tests.soak.cycles", str(cycles), str(plain)]
        runner = subprocess.Popen(
            [
                *cgroup.prefix_command,
                *command,
                str(mountpoint),
                marker,
                str(cgroup.directory),
                str(cgroup.version),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(Path(name) / "tmp")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            output, _ = runner.communicate(timeout=CYCLE_MAX_S * cycles)
        finally:
            tear_down(mountpoint, marker)  # first: it may hang in what it mounted
            runner.kill()
            runner.wait()
        assert runner.returncode == 0, f"the cycles ended with {runner.returncode}"
        return Report(**json.loads(output.splitlines()[-1]))


def _cycle(report: Report, plain: Path, mountpoint: Path, marker: str) -> None:
    job = {
        "source": f"file://{plain}",
        "mountpoint": str(mountpoint),
        "config": config_from_json_dict(CONFIG).to_json_dict(),
        "foreground": False,
    }
    at = time.monotonic()
    keeper = mount_in_background(job)
    at = report.took("mount", at)
    row = kernel.find_mount(str(mountpoint))
    assert row is not None
    for file in sorted(plain.iterdir()):
        os.getxattr(mountpoint / file.name, "user.fusefs.prefetch")
        report.wrong += not _same(mountpoint / file.name, file)
    at = report.took("load", at)
    kernel.unmount(str(mountpoint))
    keeper.wait(CYCLE_MAX_S)
    wait_ended(marker)
    report.took("unmount", at)
    if not _connection_ended(row.device, str(mountpoint)):
        report.left.append(f"connection {row.device} of cycle {report.cycles}")
    left = [*Path(tempfile.gettempdir()).iterdir(), *mountpoint.iterdir()]
    report.left += [f"{path} of cycle {report.cycles}" for path in left]


def _same(ours: Path, theirs: Path) -> bool:
    """Whether both hold the same bytes, ours read and mapped."""
    want = theirs.read_bytes()
    with ours.open("rb", buffering=0) as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            exact = mapped[:] == want
        return exact and file.read() == want


def _connection_ended(device: str, mountpoint: str) -> bool:
    """Whether the kernel let go of the connection; its number may be another mount's already."""
    directory = _CONNECTIONS / device.partition(":")[2]
    until = time.monotonic() + _GONE_WITHIN_S
    while directory.exists():
        for table in Path("/proc").glob("[0-9]*/mountinfo"):
            try:
                rows = kernel.mount_rows(table)
            except OSError:
                continue  # it ended while we looked
            if any(row.device == device and row.mountpoint != mountpoint for row in rows):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _own_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def main(cycles: str, plain: str, mountpoint: str, marker: str, *cgroup: str) -> None:
    """Do the cycles and print the report as JSON, with a line to stderr for each hundred."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[MARKER] = marker  # of those we start: our own environment in /proc stays as it was
    report = Report()
    billed = Cgroup(Path(cgroup[0]), int(cgroup[1]))
    began = time.monotonic()
    for _ in range(int(cycles)):
        _cycle(report, Path(plain), Path(mountpoint), marker)
        report.cycles += 1
        report.seconds = time.monotonic() - began
        report.descriptors.append(own_descriptors())
        if report.cycles >= WARM_CYCLES and report.cycles % LOOK_EVERY == 0:
            billed.reclaim()
            report.own_bytes.append(_own_bytes())
            report.billed_bytes.append(billed.used_bytes())
        if report.cycles % 100 == 0:
            print("\n".join(report.lines()), file=sys.stderr, flush=True)
    print(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])
