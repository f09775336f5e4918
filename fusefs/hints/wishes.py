"""Requests as values: what a message asks for, checked before anything is done.

The one idea: everything a peer can send is either one of these or an error with an errno name; the
parts behind need not look at a message again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusefs.policy.hinted import Pair, merged
from fusefs.policy.plan import Priority
from loaderhint import protocol
from loaderhint.protocol import ProtocolError

WARM, SLOTS = "warm", "slots"
LISTED, OFFSET = "listed", "offset"

PRIORITIES = {"hinted": Priority.HINTED, "warm": Priority.WARM}

EVERY_BYTES_DEFAULT = 64 << 20
"""Progress is said so often: 25 times a second at 1.6 GB/s."""

WAIT_TIMEOUT_MAX_S = 3600.0

_INT_MAX = (1 << 63) - 1


def code_of(number: int) -> str:
    """The name of an errno; of two names, the one that docs/hints.md uses."""
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"
    return errno.errorcode.get(number, "EIO")


class Refused(Exception):
    """The request is answered with an error; `number` is its errno."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def code(self) -> str:
        """The errno's name."""
        return code_of(self.number)


@dataclass(frozen=True, slots=True)
class FileWish:
    """What is wanted of one file; `extents` None is all of it."""

    inode: int
    etag: str | None
    extents: list[Pair] | None


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks of one job that load the same model."""

    id: str
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class PlanWish:
    """The operation `plan`."""

    name: str
    mode: str
    files: list[FileWish]
    in_order: bool
    priority: Priority
    group: Group | None
    append: bool
    window_bytes: int | None


@dataclass(frozen=True, slots=True)
class WaitWish:
    """The operation `wait`."""

    name: str
    inode: int
    start: int
    stop: int
    timeout_s: float


def plan_wish(message: Mapping[str, Any]) -> PlanWish:
    """Check the operation `plan`. Raises Refused."""
    files = message.get("files")
    if not isinstance(files, list) or not files:
        raise Refused(errno.EINVAL, "files is a list of {inode, etag, extents}")
    if len(files) > protocol.FILES_MAX:
        raise Refused(errno.ENOSPC, f"more files than {protocol.FILES_MAX} in one plan")
    mode = _choice(message, "mode", WARM, (WARM, SLOTS))
    order = _choice(message, "order", LISTED, (LISTED, OFFSET))
    window = message.get("window_bytes")
    return PlanWish(
        name=plan_name(message),
        mode=mode,
        files=[_file_wish(file) for file in files],
        in_order=order == LISTED,
        priority=PRIORITIES[_choice(message, "priority", "hinted", tuple(PRIORITIES))],
        group=_group(message.get("group")),
        append=message.get("append") is True,
        window_bytes=None if window is None else _number(message, "window_bytes", 1),
    )


def plan_name(message: Mapping[str, Any]) -> str:
    """The field `plan`. Raises Refused."""
    name = message.get("plan")
    if not isinstance(name, str) or not 0 < len(name) <= protocol.PLAN_NAME_MAX:
        raise Refused(errno.EINVAL, f"plan is a name of 1 to {protocol.PLAN_NAME_MAX} characters")
    return name


def wait_wish(message: Mapping[str, Any]) -> WaitWish:
    """Check the operation `wait`. Raises Refused."""
    start, stop = _number(message, "start", 0), _number(message, "stop", 0)
    if start > stop:
        raise Refused(errno.EINVAL, "start is at most stop")
    timeout_s = min(_number(message, "timeout_ms", 0) / 1000, WAIT_TIMEOUT_MAX_S)
    return WaitWish(plan_name(message), _number(message, "inode", 1), start, stop, timeout_s)


def every_bytes(message: Mapping[str, Any]) -> int:
    """The field `every_bytes` of `subscribe`. Raises Refused."""
    if message.get("every_bytes") is None:
        return EVERY_BYTES_DEFAULT
    return _number(message, "every_bytes", 1)


def released_slots(message: Mapping[str, Any]) -> list[int]:
    """The field `slots` of `release`. Raises Refused."""
    slots = message.get("slots")
    if not isinstance(slots, list) or any(type(at) is not int for at in slots):
        raise Refused(errno.EINVAL, "slots is a list of whole numbers, each the at of an event")
    return slots


def speaks_our_version(message: Mapping[str, Any]) -> bool:
    """Whether `hello` names a version of the protocol that is served."""
    versions = message.get("protocol")
    return isinstance(versions, list) and protocol.VERSION in versions


def _file_wish(value: object) -> FileWish:
    if not isinstance(value, dict):
        raise Refused(errno.EINVAL, "files is a list of {inode, etag, extents}")
    etag = value.get("etag")
    if etag is not None and not isinstance(etag, str):
        raise Refused(errno.EINVAL, "etag is a text")
    extents = None
    if value.get("extents") is not None:
        try:
            extents = protocol.extents_of(value["extents"])
        except ProtocolError as error:
            raise Refused(errno.EINVAL, str(error)) from error
        if len(extents) > protocol.EXTENTS_MAX and len(merged(extents)) > protocol.EXTENTS_MAX:
            raise Refused(errno.ENOSPC, f"more extents than {protocol.EXTENTS_MAX}")
    return FileWish(_number(value, "inode", 1), etag, extents)


def _group(value: object) -> Group | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Refused(errno.EINVAL, "group is {id, rank, size}")
    name, rank, size = value.get("id"), _number(value, "rank", 0), _number(value, "size", 1)
    if not isinstance(name, str) or not 0 < len(name) <= protocol.PLAN_NAME_MAX:
        raise Refused(errno.EINVAL, f"a group's id has 1 to {protocol.PLAN_NAME_MAX} characters")
    if size > protocol.GROUP_SIZE_MAX or rank >= size:
        raise Refused(errno.EINVAL, f"0 <= rank < size <= {protocol.GROUP_SIZE_MAX} in a group")
    return Group(name, rank, size)


def _choice(message: Mapping[str, Any], field: str, default: str, known: tuple[str, ...]) -> str:
    value = message.get(field, default)
    if not isinstance(value, str) or value not in known:
        raise Refused(errno.EINVAL, f"{field} is one of {', '.join(known)}")
    return value


def _number(message: Mapping[str, Any], field: str, least: int) -> int:
    value = message.get(field)
    if type(value) is not int or not least <= value <= _INT_MAX:
        raise Refused(errno.EINVAL, f"{field} is a whole number, {least} or more")
    return value
