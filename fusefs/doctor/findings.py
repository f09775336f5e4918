"""What the evidence means: sentences that say what is wrong and what to do about it.

Pure: evidence in, findings out, the gravest first. The one idea: a rule for each sickness, in the
order in which they explain one another, so that the first sentence is the one to act on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fusefs.doctor.evidence import (
    DAEMON,
    FETCH,
    KEEPER,
    PUSH,
    SHARED_MEMORY,
    SPAWNER,
    Evidence,
    Process,
)
from fusefs.mount.kernel import FSTYPE

WAITS_S = 30.0
"""A read that waits so long is felt; stores fail over in less."""

DESCRIPTORS_FULL = 0.9
MEMORY_FULL = 0.9
DISK_FREE_MIN = 1 << 20
"""A log that cannot grow by a megabyte is as good as none."""

ROOM_FREE_FRACTION = 50
"""Shared memory is called full when a fiftieth is left."""

ERRORS_FRACTION = 10
"""One failed request in ten is more than a store's usual bad luck."""

_STOPPED = "Tt"
_NAMES = {FETCH: "worker", PUSH: "pusher"}


class Severity(IntEnum):
    """SICK: it does not serve, or soon will not. WEAK: slower or less safe. NOTE: good to know."""

    SICK = 0
    WEAK = 1
    NOTE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `name` is for scripts and the documentation."""

    severity: Severity
    name: str
    sentence: str


Rule = Callable[[Evidence], Iterator[Finding]]


def findings(evidence: Evidence) -> list[Finding]:
    """All that is wrong, the gravest first; of one severity, causes before consequences."""
    found = [finding for rule in RULES for finding in rule(evidence)]
    return sorted(found, key=lambda finding: finding.severity)


def _sick(name: str, sentence: str) -> Finding:
    return Finding(Severity.SICK, name, sentence)


def _weak(name: str, sentence: str) -> Finding:
    return Finding(Severity.WEAK, name, sentence)


def _is_ours(evidence: Evidence) -> bool:
    return evidence.row is not None and evidence.row.fstype == FSTYPE


def _stats(evidence: Evidence) -> dict[str, Any]:
    answer = evidence.answer
    return answer.stats if answer is not None and answer.stats is not None else {}


def _is_silent(evidence: Evidence) -> bool:
    return evidence.answer is not None and evidence.answer.silent


def _is_dead(evidence: Evidence) -> bool:
    return evidence.answer is not None and evidence.answer.dead


def _alive(evidence: Evidence, role: str) -> list[Process]:
    return [process for process in evidence.of(role) if process.state not in "ZX"]


def mounted(evidence: Evidence) -> Iterator[Finding]:
    """Whether there is anything to examine."""
    at, row = evidence.mountpoint, evidence.row
    if row is None:
        left = " ".join(str(process.pid) for process in evidence.processes)
        held = ", ".join(f"{user.name} {user.pid} ({user.how})" for user in evidence.users or ())
        detached = (
            f"; a mount that was detached from it still has the processes {left}, which end with"
            f" its last user: {held or 'nobody that can be seen'}" if left else ""
        )  # fmt: skip
        yield _sick(
            "not-mounted",
            f"nothing is mounted on {at}: mount it with fusefs mount SOURCE {at}{detached}",
        )
    elif row.fstype != FSTYPE:
        yield _sick(
            "not-ours",
            f"{at} is a mount of {row.source} ({row.fstype}) and not one of fusefs: look for what"
            " mounted it",
        )


def daemon(evidence: Evidence) -> Iterator[Finding]:
    """The process that answers the kernel."""
    at = evidence.mountpoint
    if not _is_ours(evidence):
        return
    if _is_dead(evidence):
        yield _sick(
            "dead",
            f"the mount has lost its daemon (transport endpoint is not connected): remove it with"
            f" fusefs umount -l {at} and mount again; programs that had files open must open them"
            " anew",
        )
        return
    daemons = _alive(evidence, DAEMON)
    if not daemons and not evidence.hidden_processes and not _stats(evidence):
        held = ", ".join(f"{each.role} {each.pid}" for each in evidence.processes)
        holder = f" ({held} still holds it)" if held else " (some process still holds it)"
        yield _sick(
            "daemon-gone",
            f"no daemon answers for the mount{holder}, so readers hang instead of failing: free"
            f" them with fusefs umount -l {at} and mount again",
        )
        return
    for process in daemons:
        if process.state in _STOPPED:
            yield _sick(
                "daemon-stopped",
                f"the daemon is stopped, by SIGSTOP or a debugger: let it go on with"
                f" kill -CONT {process.pid}",
            )
        elif _is_silent(evidence) and process.state == "D":
            where = f" in {process.waits}" if process.waits else ""
            yield _sick(
                "daemon-waits",
                f"the daemon (pid {process.pid}) waits in the kernel{where} and answers nobody: if"
                f" that does not pass, free its readers with fusefs umount -l {at}",
            )


def silent(evidence: Evidence) -> Iterator[Finding]:
    """It runs, and yet it does not answer."""
    daemons = _alive(evidence, DAEMON)
    answer = evidence.answer
    if not _is_ours(evidence) or answer is None or answer.stats is not None or answer.dead:
        return
    if not answer.silent:
        yield _sick(
            "no-statistics",
            f"the mount {answer.trouble}: ask as the user who mounted it, or as root",
        )
    elif daemons and all(process.state not in (*_STOPPED, "D") for process in daemons):
        waiting = evidence.connection.waiting if evidence.connection is not None else None
        requests = f"; {waiting} requests wait in the kernel" if waiting else ""
        yield _sick(
            "daemon-silent",
            f"the daemon (pid {daemons[0].pid}) runs but does not answer{requests}: with more"
            " readers than it serves at once and a store that does not answer this passes when the"
            f" store does; else free the readers with fusefs umount -l {evidence.mountpoint}",
        )


def workers(evidence: Evidence) -> Iterator[Finding]:
    """The processes that fetch, and those that help."""
    if not _is_ours(evidence) or _is_dead(evidence):
        return
    stopped = [
        process
        for role in (KEEPER, SPAWNER, FETCH, PUSH)
        for process in evidence.of(role)
        if process.state in _STOPPED
    ]
    for process in stopped:
        name = _NAMES.get(process.role, process.role)
        yield _sick(
            "process-stopped",
            f"the {name} with pid {process.pid} is stopped, by SIGSTOP or a debugger: let it go on"
            f" with kill -CONT {process.pid}",
        )
    if _alive(evidence, DAEMON) and not _alive(evidence, FETCH):
        yield _sick(
            "workers-gone",
            "there is no worker to fetch anything: the log says why they cannot start; a limit of"
            " processes (pids.max, ulimit -u) or of memory would be one reason",
        )


def store(evidence: Evidence) -> Iterator[Finding]:
    """Whether the bucket answers, asked as the mount would ask."""
    if evidence.store is not None and evidence.store.error is not None:
        yield _sick(
            "store",
            f"the store does not serve the source: {evidence.store.error}; reads of what is not"
            " here yet wait for engine.read_deadline_s and fail then",
        )


def requests(evidence: Evidence) -> Iterator[Finding]:
    """Requests of the kernel that are not answered."""
    stats = _stats(evidence)
    stuck = stats.get("counters", {}).get("requests_stuck", 0)
    oldest = stats.get("requests", {})
    if stuck:
        yield _sick(
            "requests-stuck",
            f"{stuck} requests outlived every deadline, which is a defect of fusefs: report it with"
            " the log, and remount to go on",
        )
    if oldest.get("oldest") and oldest.get("oldest_s", 0) >= WAITS_S:
        yield _sick(
            "requests-wait",
            f"a request has waited for {oldest['oldest_s']:.0f} s: {oldest['oldest']}; the store is"
            " slow or does not answer",
        )


def limits(evidence: Evidence) -> Iterator[Finding]:
    """Descriptors, memory, disks."""
    for process in evidence.processes:
        used, most = process.descriptors, process.descriptors_max
        if used is not None and most is not None and used >= DESCRIPTORS_FULL * most:
            name = _NAMES.get(process.role, process.role)
            yield _sick(
                "descriptors",
                f"the {name} with pid {process.pid} has {used} of {most} descriptors open: raise"
                f" the limit with prlimit --nofile=65536 --pid {process.pid}, and for the next"
                " mount with ulimit -n or LimitNOFILE=",
            )
    for level in evidence.memory:
        if level.killed:
            yield _sick(
                "memory-killed",
                f"{level.killed} processes of the cgroup {level.path} were killed for want of"
                f" memory: raise its limit of {level.limit >> 20} MiB, or lower --memory",
            )
        elif level.kept >= MEMORY_FULL * level.limit:
            yield _sick(
                "memory",
                f"{level.kept >> 20} of {level.limit >> 20} MiB of the cgroup {level.path} cannot"
                " be dropped: raise its limit, or lower --memory",
            )
    for room in evidence.rooms:
        if room.path == SHARED_MEMORY:
            if room.free_bytes * ROOM_FREE_FRACTION < room.size_bytes:
                yield _weak(
                    "shared-memory",
                    f"{room.path} is full ({room.free_bytes >> 20} of {room.size_bytes >> 20} MiB"
                    " free): fusefs does not use it, but loaders with worker processes do; remove"
                    " what is left in it or make it larger",
                )
        elif room.free_bytes < DISK_FREE_MIN:
            yield _weak(
                "log-full",
                f"the disk of the log {room.path} is full: what goes wrong is not written down;"
                " make room there, or set log.file",
            )


def attendants(evidence: Evidence) -> Iterator[Finding]:
    """Processes without which it serves, but not as well."""
    if not _is_ours(evidence) or not _alive(evidence, DAEMON):
        return
    if not _alive(evidence, KEEPER) and not evidence.hidden_processes:
        yield _weak(
            "keeper-gone",
            "the keeper is gone: the mount serves, but nobody cleans up after its daemon; mount"
            " again when it suits",
        )
    for process in _alive(evidence, PUSH):
        if process.state == "D":
            yield _weak(
                "pusher-waits",
                f"the pusher (pid {process.pid}) waits for a page that a read under way holds: that"
                " passes with the read, and READs serve all bytes meanwhile",
            )


def speed(evidence: Evidence) -> Iterator[Finding]:
    """What makes it slower than it could be."""
    stats = _stats(evidence)
    for name, knob in sorted(stats.get("kernel", {}).items()):
        if not knob.get("set"):
            yield _weak(
                name.replace("_", "-"),
                f"{name} is {knob.get('actual')} instead of {knob.get('wanted')}"
                f" ({knob.get('why')}): mount as root of the host, or read with several threads in"
                " large pieces",
            )
    # As it is now: the status tells what was set when the mount began.
    now = evidence.connection.read_ahead_kb if evidence.connection is not None else None
    knob = stats.get("kernel", {}).get("read_ahead_kb", {})
    if knob.get("set") and now is not None and now < min(knob.get("wanted", 0), 1024):
        yield _weak(
            "read-ahead-kb",
            f"somebody set read_ahead_kb back to {now}: write {knob['wanted']} to"
            f" /sys/class/bdi/{evidence.row.device if evidence.row else ''}/read_ahead_kb",
        )
    refused = stats.get("page_cache", {}).get("refused")
    if refused:
        yield _weak("not-pushed", f"nothing is pushed into the page cache: {refused}")
    if stats.get("fetching", {}).get("throttled"):
        yield _weak(
            "throttled",
            "the store asks for fewer requests: the mount has slowed down by itself, and tries more"
            " later; ask for a higher quota if that is too slow",
        )
    counters = stats.get("counters", {})
    failed, asked = counters.get("fetch_errors", 0), counters.get("requests_read", 0)
    if asked and failed * ERRORS_FRACTION > asked:
        yield _weak(
            "errors",
            f"{failed} of {asked} requests for bytes failed: the warnings below, or the log at"
            " level info, say why",
        )
    if counters.get("workers_replaced"):
        yield _weak(
            "workers-replaced",
            f"{counters['workers_replaced']} workers died and were replaced: look for an"
            " out-of-memory kill in the kernel's log (dmesg)",
        )
    if counters.get("pushed_pages_lost_bytes", 0) * ERRORS_FRACTION > counters.get(
        "bytes_pushed", 0
    ):
        yield _weak(
            "pages-lost",
            "the kernel drops pages before they are read: give the machine, or the mount's cgroup,"
            " more memory",
        )


def sight(evidence: Evidence) -> Iterator[Finding]:
    """What could not be looked at, and what else is good to know."""
    if not _is_ours(evidence):
        return
    if evidence.hidden_processes and not evidence.processes:
        yield Finding(
            Severity.NOTE,
            "no-sight",
            "the processes of the mount are another user's and cannot be looked into: run fusefs"
            " doctor as root to see more",
        )
    if evidence.connection is not None and evidence.connection.waiting is None:
        yield Finding(
            Severity.NOTE,
            "no-connections",
            "the kernel's list of FUSE connections cannot be read: mount -t fusectl fusectl"
            " /sys/fs/fuse/connections, as root",
        )
    stats = _stats(evidence)
    version = stats.get("version")
    if version and version != evidence.own_version:
        yield Finding(
            Severity.NOTE,
            "other-version",
            f"the mount runs fusefs {version}, this command is {evidence.own_version}: what is new"
            " comes with the next mount",
        )
    warnings = stats.get("warnings", [])
    if warnings:
        yield Finding(
            Severity.NOTE,
            "warnings",
            f"the mount warned {len(warnings)} times; last: {warnings[-1]}",
        )


RULES: tuple[Rule, ...] = (
    mounted,
    daemon,
    silent,
    workers,
    store,
    requests,
    limits,
    attendants,
    speed,
    sight,
)
