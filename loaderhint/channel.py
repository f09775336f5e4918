"""Finding the daemon of a mount, and calling it: the socket inside the mount, or its attributes.

The mount is the one thing certain to be shared with a container, so both ways in lead through it.
The one idea: what is no fusefs mount is never asked anything. mountinfo says what a path is on, and
a socket somebody left in a folder of a plain disk is not connected to.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loaderhint import protocol

MOUNTINFO = "/proc/self/mountinfo"
FSTYPE = "fuse.fusefs"

ATTRIBUTE = "user.fusefs."
"""What the names of the verbs begin with: prefetch, cancel, progress, stats."""

HELLO_TIMEOUT_S = 2.0
"""A daemon answers within a millisecond; one that takes seconds is no help to anybody."""

_SEND_TIMEOUT_S = 5.0
"""The daemon reads what is sent in milliseconds; a peer that does not is left."""

_CLIENT_NAME = "loaderhint"
_RECEIVE_BYTES = 256 << 10
_HELLO_ID = 0


class NoDaemon(Exception):
    """Nobody answers, or what answers does not speak the protocol."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One greeted connection: its socket, what came of the next frame, and what the daemon can."""

    socket: socket.socket
    frames: protocol.Frames
    features: frozenset[str]
    extents_max: int
    files_max: int


def filesystem_of(device: int) -> str | None:
    """The file system type of the mount with this `st_dev`; None if there is none to be seen."""
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open(MOUNTINFO, "rb") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, kind = line.partition(b" - ")
        fields = mount.split(b" ", 3)
        if len(fields) > 2 and fields[2] == number:
            return os.fsdecode(kind.split(b" ", 1)[0])
    return None


def connect(folder: str, device: int) -> Connection:
    """Connect to the daemon of the mount `device` that `folder` is in, and greet.

    Raises NoDaemon, also if the folder is on another file system: one file of a mount may be bound
    into a folder of anybody's, and whose socket lies there is not the daemon's.
    """
    connection: socket.socket | None = None
    try:
        # Through /proc: the name of a socket has 108 bytes, a path may have more.
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(at).st_dev != device:
                raise ValueError("the folder is not on the mount")
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(HELLO_TIMEOUT_S)
            name = f"{protocol.SOCKET_FOLDER}/{protocol.SOCKET_NAME}"
            connection.connect(f"/proc/self/fd/{at}/{name}")
        finally:
            os.close(at)
        return _greet(connection)
    except (OSError, ValueError) as error:
        if connection is not None:
            connection.close()
        raise NoDaemon(str(error)) from error


def _greet(connection: socket.socket) -> Connection:
    frames = protocol.Frames()
    hello = {"id": _HELLO_ID, "op": protocol.HELLO, "client": _CLIENT_NAME}
    connection.sendall(protocol.encode({**hello, "protocol": [protocol.VERSION]}))
    deadline = time.monotonic() + HELLO_TIMEOUT_S
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = connection.recv(_RECEIVE_BYTES)
        if not data:
            raise protocol.ProtocolError("the daemon hung up")
        for message in frames.feed(data):
            ok = message.get("ok")
            if message.get("id") != _HELLO_ID or not isinstance(ok, dict):
                raise protocol.ProtocolError("the daemon does not speak this protocol")
            if ok.get("protocol") != protocol.VERSION:
                raise protocol.ProtocolError("the daemon speaks another version")
            # From here on one thread waits in recvmsg; only what is sent has a bound.
            connection.settimeout(None)
            _bound_sending(connection)
            return _connection(connection, frames, ok)


def _bound_sending(connection: socket.socket) -> None:
    """SO_SNDTIMEO, a struct timeval: Python's own timeout would bound the reader, too."""
    timeval = struct.pack("@ll", int(_SEND_TIMEOUT_S), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _connection(
    connection: socket.socket, frames: protocol.Frames, ok: dict[str, Any]
) -> Connection:
    features = ok.get("features")
    limits = ok.get("limits")
    if not isinstance(features, list) or not isinstance(limits, dict):
        raise protocol.ProtocolError("the daemon does not say what it can do")
    return Connection(
        connection,
        frames,
        frozenset(feature for feature in features if isinstance(feature, str)),
        min(protocol.EXTENTS_MAX, _positive(limits.get("extents"), protocol.EXTENTS_MAX)),
        min(protocol.FILES_MAX, _positive(limits.get("files"), protocol.FILES_MAX)),
    )


def _positive(value: object, otherwise: int) -> int:
    return value if type(value) is int and value > 0 else otherwise


def receive(
    connection: Connection,
    each: Callable[[dict[str, Any], list[int]], None],
) -> None:
    """Hand every message to `each`, with the descriptors that came so far, until the peer hangs up.

    `each` takes the descriptors it wants from the list; the others are closed. Raises OSError,
    ProtocolError.
    """
    descriptors: list[int] = []
    try:
        while True:
            data, came, _, _ = socket.recv_fds(
                connection.socket, _RECEIVE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
            descriptors += came
            if not data:
                return
            for message in connection.frames.feed(data):
                each(message, descriptors)
                # One descriptor comes with the reply that it belongs to, or never.
                while len(descriptors) > 1:
                    os.close(descriptors.pop(0))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def ask(target: int | str, verb: str) -> dict[str, Any] | None:
    """The answer of an attribute verb on a file or folder (descriptor or path); None without."""
    try:
        answer = json.loads(os.getxattr(target, ATTRIBUTE + verb))
    except (OSError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
