"""The command `fusefs doctor`: what is wrong with a mount, and what to do about it.

Exit status 0 if the mount serves, 1 if it is sick; what only makes it weaker is told and changes
nothing. It never touches the mount itself, so it answers where the mount does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fusefs.cli.preflight import resolve_mountpoint
from fusefs.cli.report import printable, show_bytes
from fusefs.cli.terminal import say
from fusefs.doctor.evidence import Evidence, Process, User
from fusefs.doctor.examine import examine
from fusefs.doctor.findings import Finding, Severity, findings

VERSION = 1
"""Of the JSON: keys may come, none changes its meaning."""

_LABEL_WIDTH = 12
_USERS_SHOWN = 8


def add_doctor(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `fusefs`."""
    doctor = commands.add_parser(
        "doctor",
        help="explain what is wrong with a mount, also one that hangs",
        epilog="exit status 0: it serves; 1: it is sick. As root it sees more.",
    )
    doctor.add_argument("mountpoint", metavar="MOUNTPOINT")
    doctor.add_argument("--json", action="store_true", help="for scripts: findings and evidence")
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    evidence = examine(resolve_mountpoint(arguments.mountpoint))
    found = findings(evidence)
    sick = any(finding.severity is Severity.SICK for finding in found)
    if arguments.json:
        say([json.dumps(doctor_object(evidence, found, sick), indent=2)])
    else:
        say(printable(line) for line in doctor_lines(evidence, found, sick))
    return 1 if sick else 0


def doctor_object(evidence: Evidence, found: Sequence[Finding], sick: bool) -> dict[str, Any]:
    """For scripts: `well`, the findings, and all that they rest on."""
    rows = [
        {"severity": each.severity.name.lower(), "name": each.name, "sentence": each.sentence}
        for each in found
    ]
    return {
        "v": VERSION,
        "mountpoint": evidence.mountpoint,
        "well": not sick,
        "findings": rows,
        "evidence": asdict(evidence),
    }


def doctor_lines(evidence: Evidence, found: Sequence[Finding], sick: bool) -> Iterator[str]:
    """For people: the findings, then what was looked at."""
    yield f"{evidence.mountpoint}: {'sick' if sick else 'serves'}"
    for finding in found:
        yield f"  {finding.severity.name.lower():<6}{finding.sentence}"
    if not found:
        yield "  nothing is wrong"
    if evidence.row is None:
        return
    yield ""
    for label, text in _evidence_rows(evidence):
        yield f"  {label:<{_LABEL_WIDTH}}{text}"


def _evidence_rows(evidence: Evidence) -> Iterator[tuple[str, str]]:
    row, connection = evidence.row, evidence.connection
    if row is not None:
        yield "mount", f"{row.source} ({row.fstype}), device {row.device}"
    if connection is not None:
        yield (
            "kernel",
            f"{_known(connection.waiting)} requests wait; max_background"
            f" {_known(connection.max_background)}, read_ahead_kb"
            f" {_known(connection.read_ahead_kb)}",
        )
    for position, process in enumerate(evidence.processes):
        yield "" if position else "processes", _process(process)
        for line in process.stack:
            yield "", f"    {line}"
    if evidence.users is not None:
        yield "users", _users(evidence.users)
    if evidence.store is not None:
        said = evidence.store.error or f"answers in {evidence.store.seconds:.2f} s"
        yield "store", said
    elif connection is not None:
        yield "store", "not asked: the settings of the mount cannot be read"
    for level in evidence.memory:
        yield (
            "memory",
            f"{show_bytes(level.used)} of {show_bytes(level.limit)} used,"
            f" {show_bytes(level.kept)} of it for good, in {level.path}",
        )
    for room in evidence.rooms:
        free, size = show_bytes(room.free_bytes), show_bytes(room.size_bytes)
        yield "room", f"{free} of {size} free in {room.path}"
    stats = evidence.answer.stats if evidence.answer is not None else None
    if stats is None:
        return
    arena = stats.get("arena", {})
    yield (
        "arena",
        f"{arena.get('slots', 0)} slots: {arena.get('free', 0)} free,"
        f" {arena.get('fetching', 0)} fetching, {arena.get('pinned', 0)} pinned",
    )
    for position, warning in enumerate(stats.get("warnings", [])):
        yield "" if position else "warnings", str(warning)


def _process(process: Process) -> str:
    waits = f" in {process.waits}" if process.waits and process.waits != "0" else ""
    descriptors = (
        f", {process.descriptors} of {_known(process.descriptors_max)} descriptors"
        if process.descriptors is not None
        else ""
    )
    return f"{process.role} {process.pid}: state {process.state}{waits}{descriptors}"


def _users(users: Sequence[User]) -> str:
    shown = [f"{user.name} {user.pid} ({user.how}, {user.state})" for user in users[:_USERS_SHOWN]]
    more = f" and {len(users) - _USERS_SHOWN} more" if len(users) > _USERS_SHOWN else ""
    return ", ".join(shown) + more if shown else "nobody that can be seen"


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)
