"""Each sickness as evidence: the finding that names it, and its place among the others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusefs.client import Answer
from fusefs.doctor.evidence import Connection, Evidence, Process, Room, StoreAnswer
from fusefs.doctor.findings import Severity, findings
from fusefs.engine.machine import MemoryLevel
from fusefs.mount.kernel import FSTYPE, MountRow

MIB = 1 << 20
ROW = MountRow("/mnt", "0:57", FSTYPE, "s3://bucket/")
KNOB = {"wanted": 4096, "actual": 4096, "set": True, "why": None}

PROCESSES = (
    Process("keeper", 1, 0, "S"),
    Process("daemon", 2, 1, "S"),
    Process("spawner", 3, 2, "S"),
    Process("fetch", 4, 3, "S"),
    Process("push", 5, 2, "S"),
)


def stats(**changes: Any) -> dict[str, Any]:
    """The status of a mount that is well, but for `changes`."""
    well: dict[str, Any] = {
        "version": "1",
        "counters": {"requests_read": 100, "bytes_pushed": 1000},
        "requests": {"under_way": 1, "oldest_s": 0.0, "oldest": None},
        "kernel": {"read_ahead_kb": KNOB},
        "page_cache": {"refused": None},
        "fetching": {"throttled": 0},
        "warnings": [],
    }
    return {**well, **changes}


WELL = Evidence(
    "/mnt",
    ROW,
    Answer(stats()),
    Connection("57", 0, 128, 1024),
    PROCESSES,
    store=StoreAnswer(None, 0.1),
    own_version="1",
)
SILENT = replace(WELL, answer=Answer(None, "does not answer", silent=True))


def answering(**changes: Any) -> Evidence:
    """That mount, with another status."""
    return replace(WELL, answer=Answer(stats(**changes)))


def with_state(role: str, state: str, evidence: Evidence = WELL) -> Evidence:
    """That mount, with the processes of one role in another state."""
    processes = tuple(replace(p, state=state) if p.role == role else p for p in PROCESSES)
    return replace(evidence, processes=processes)


def without(role: str, evidence: Evidence = WELL) -> Evidence:
    """That mount, without the processes of one role."""
    return replace(evidence, processes=tuple(p for p in PROCESSES if p.role != role))


def with_descriptors(used: int) -> Evidence:
    """That mount, whose daemon has so many of a hundred descriptors."""
    daemon = replace(PROCESSES[1], descriptors=used, descriptors_max=100)
    return replace(WELL, processes=(PROCESSES[0], daemon, *PROCESSES[2:]))


def level(kept: int, killed: int = 0) -> tuple[MemoryLevel, ...]:
    """A cgroup of 512 MiB."""
    return (MemoryLevel("/sys/fs/cgroup/pod", 512 * MIB, 500 * MIB, kept, killed),)


SICK: dict[str, tuple[str, Evidence]] = {
    "not-mounted": ("fusefs mount SOURCE /mnt", Evidence("/mnt", None)),
    "not-ours": ("ext4", Evidence("/mnt", replace(ROW, fstype="ext4"))),
    "dead": ("fusefs umount -l /mnt", replace(WELL, answer=Answer(None, "lost", dead=True))),
    "daemon-gone": ("fusefs umount -l /mnt", without("daemon", SILENT)),
    "daemon-stopped": ("kill -CONT 2", with_state("daemon", "T", SILENT)),
    "daemon-waits": ("fusefs umount -l /mnt", with_state("daemon", "D", SILENT)),
    "daemon-silent": ("fusefs umount -l /mnt", SILENT),
    "no-statistics": (
        "as root",
        replace(WELL, answer=Answer(None, "gives no statistics (Permission denied)")),
    ),
    "process-stopped": ("kill -CONT 4", with_state("fetch", "T")),
    "workers-gone": ("pids.max", without("fetch")),
    "store": (
        "no answer within 15 s",
        replace(WELL, store=StoreAnswer("no answer within 15 s", 15.0)),
    ),
    "requests-stuck": ("report it", answering(counters={"requests_stuck": 2})),
    "requests-wait": (
        "READ of w",
        answering(requests={"under_way": 2, "oldest_s": 31.0, "oldest": "READ of w"}),
    ),
    "descriptors": ("prlimit --nofile=65536 --pid 2", with_descriptors(90)),
    "memory-killed": ("512 MiB", replace(WELL, memory=level(10 * MIB, killed=1))),
    "memory": ("--memory", replace(WELL, memory=level(480 * MIB))),
}

WEAK: dict[str, tuple[str, Evidence]] = {
    "shared-memory": (
        "loaders with worker processes",
        replace(WELL, rooms=(Room("/dev/shm", 64 * MIB, MIB),)),
    ),
    "log-full": ("log.file", replace(WELL, rooms=(Room("/var/log/f", 64 * MIB, 4096),))),
    "keeper-gone": ("mount again", without("keeper")),
    "pusher-waits": ("passes", with_state("push", "D")),
    "read-ahead-kb": (
        "as root of the host",
        answering(kernel={"read_ahead_kb": {**KNOB, "actual": 128, "set": False, "why": "EACCES"}}),
    ),
    "max-background": (
        "as root of the host",
        answering(kernel={"max_background": {**KNOB, "actual": 12, "set": False, "why": "EACCES"}}),
    ),
    "not-pushed": ("kernel.push is off", answering(page_cache={"refused": "kernel.push is off"})),
    "throttled": ("quota", answering(fetching={"throttled": 1})),
    "errors": ("30 of 100", answering(counters={"requests_read": 100, "fetch_errors": 30})),
    "workers-replaced": ("dmesg", answering(counters={"workers_replaced": 3})),
    "pages-lost": (
        "more memory",
        answering(counters={"bytes_pushed": 1000, "pushed_pages_lost_bytes": 200}),
    ),
}

NOTES: dict[str, tuple[str, Evidence]] = {
    "no-sight": ("as root", replace(WELL, processes=(), hidden_processes=5)),
    "no-connections": ("fusectl", replace(WELL, connection=Connection("57"))),
    "other-version": ("fusefs 2", answering(version="2")),
    "warnings": ("last: b", answering(warnings=["a", "b"])),
}

PLANTED = [
    (severity, name, words, evidence)
    for severity, cases in ((Severity.SICK, SICK), (Severity.WEAK, WEAK), (Severity.NOTE, NOTES))
    for name, (words, evidence) in cases.items()
]


def test_a_mount_that_is_well_has_no_findings() -> None:
    """Nothing is made up."""
    assert findings(WELL) == []


@pytest.mark.parametrize(
    ("severity", "name", "words", "evidence"), PLANTED, ids=[case[1] for case in PLANTED]
)
def test_a_planted_sickness_is_found(
    severity: Severity, name: str, words: str, evidence: Evidence
) -> None:
    """It is the first that is told, with its severity, and says what to do in one sentence."""
    first = findings(evidence)[0]
    assert (first.name, first.severity) == (name, severity)
    assert words in first.sentence
    assert not first.sentence.endswith(".")


def test_the_gravest_comes_first() -> None:
    """Whatever the order of the rules: what is sick stands before what is weak."""
    sick = replace(answering(warnings=["w"], fetching={"throttled": 1}), memory=level(480 * MIB))
    assert [each.severity for each in findings(sick)] == sorted(Severity)


def test_a_readahead_set_back_by_somebody_is_seen() -> None:
    """The status tells what was set when the mount began; the kernel tells what holds now."""
    found = findings(replace(WELL, connection=Connection("57", 0, 128, 128)))
    assert [each.name for each in found] == ["read-ahead-kb"]
    assert "write 4096 to /sys/class/bdi/0:57/read_ahead_kb" in found[0].sentence


def test_a_detached_mount_with_live_processes_is_told() -> None:
    """After umount -l the processes stay until the last file is closed."""
    found = findings(Evidence("/mnt", None, processes=PROCESSES))
    assert "still has the processes 1 2 3 4 5" in found[0].sentence


def test_every_finding_is_documented(repository: Path) -> None:
    """docs/operations.md has a row for each, with its severity, and for nothing else."""
    text = (repository / "docs/operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (sick|weak|note) \|", text, re.MULTILINE)
    assert sorted(rows) == sorted((name, severity.name.lower()) for severity, name, _, _ in PLANTED)
