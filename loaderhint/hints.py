"""Hints for any loader: say what will be read, then read it as ever.

The one idea: a hint is advice. Whatever is wrong with it, a path that is not there, no mount, no
daemon, a name no file has, the loader hears nothing of it and reads its files; only the log, at
debug, tells. What it found, it holds: the files stay open while the hint lives, so that their
inodes mean the same files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from loaderhint import channel, plan, protocol, wishes
from loaderhint.client import RECONNECT_TIMEOUT_S, Client
from loaderhint.files import OpenFile, Paths, expand_paths, open_files, read_headers
from loaderhint.wishes import Events, Group, Progress, Wanted

VERBS_PER_FILE = 256
"""Without the socket each extent is a call of its own; more are joined over the smallest gaps."""

_SETTLED_S = 2.0
"""After a failure, with nothing in flight and nothing new for so long, no more comes."""

Asked = tuple[OpenFile, tuple[plan.Extent, ...] | None]
"""What is asked of one file; without extents all of it."""

_log = logging.getLogger("loaderhint")


class Hint:
    """What one hint asked for; leave it (`with`, or close) when the model is loaded.

    One that is dropped without a word goes on until the process ends.

    The mutable state of Hint is which clients are connected, they know the rest, and `failed`:
    what could not be fetched, a sentence each, as far as it was heard of.
    """

    def __init__(
        self,
        name: str,
        clients: Sequence[Client],
        attributes: Sequence[Asked],
        resources: ExitStack,
    ) -> None:
        self._name = name
        self._clients = list(clients)
        self._attributes = list(attributes)
        self._resources = resources
        self.failed: list[str] = []

    @property
    def channel(self) -> str:
        """How the daemon was told: "socket", "xattr" or "none"."""
        return "socket" if self._clients else "xattr" if self._attributes else "none"

    def progress(self) -> Progress | None:
        """How much of what was asked for is here; None if nobody can say."""
        answers = [client.progress(self._name) for client in self._clients]
        answers += [_verb_progress(file.fd) for file, _ in self._attributes]
        known = [answer for answer in answers if answer is not None]
        if not known:
            return None
        return Progress(
            sum(one.ready_bytes for one in known),
            sum(one.total_bytes for one in known),
            sum(one.bytes_per_s for one in known),
            sum(one.in_flight for one in known),
        )

    def watch(self, every_s: float = 0.25) -> Iterator[Progress]:
        """Yield the progress every so often, until all that can be fetched is here.

        Ends at once where nobody can say. What could not be fetched is in `failed` then.
        """
        every_bytes = max(1, getattr(self.progress(), "total_bytes", 0) // 100)
        heard = [client.subscribe(self._name, every_bytes) for client in self._clients]
        waiting = [events for events in heard if events is not None]
        moved_at, last = time.monotonic(), None
        while True:
            waiting = [events for events in waiting if not self._hear(events)]
            now = self.progress()
            if now is not None:
                yield now
                if now.ready_bytes >= now.total_bytes or not (waiting or self._attributes):
                    return
            if now is not None and (now != last or now.in_flight):
                moved_at, last = time.monotonic(), now
            # Nothing more comes of a file that failed; the others are seen to move.
            still_s = time.monotonic() - moved_at
            if still_s > (_SETTLED_S if self._has_failed() else RECONNECT_TIMEOUT_S):
                if now is None:
                    self.failed.append("the daemon is gone")
                return
            if now is None and not self._clients:
                return
            time.sleep(every_s)

    def _hear(self, events: Events) -> bool:
        """Take the news of one plan; whether it is done."""
        while (event := events.take(0)) is not None:
            if event.get("ev") == protocol.FAILED:
                self.failed.append(f"inode {event.get('inode')}: {event.get('message')}")
            elif event.get("ev") == protocol.DONE:
                return True
        return False

    def _has_failed(self) -> bool:
        """Whether a file failed: what a socket told, or what an attribute says now."""
        for file, _ in self._attributes:
            failed = (channel.ask(file.fd, "progress") or {}).get("failed")
            sentence = f"{file.path}: {failed}"
            if failed and sentence not in self.failed:
                self.failed.append(sentence)
        return bool(self.failed)

    def cancel(self) -> None:
        """Fetch no more of it. What is here stays."""
        for client in self._clients:
            client.cancel(self._name)
        for file, _ in self._attributes:
            channel.ask(file.fd, "cancel")

    def close(self) -> None:
        """Cancel what a socket was asked for, hang up, close the files. May be called again."""
        clients, self._clients, self._attributes = self._clients, [], []
        for client in clients:
            client.close()
        self._resources.close()

    def __enter__(self) -> Hint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def hint(
    paths: Paths,
    *,
    tensors: Iterable[str] | None = None,
    select: plan.Select | None = None,
    slices: Mapping[str, plan.Cut] | None = None,
    order: str = plan.LISTED,
    group: Group | None = None,
) -> Hint:
    """Tell the daemon of the mount what of `paths` (files, or folders of shards) comes next.

    `tensors` are names in the order they will be read, `select` keeps the names it is true for,
    `slices` maps names to the slice that is needed; without the three, files are fetched whole.
    `order` is "listed" or "offset". Returns at once, with a hint that does nothing where there is
    no daemon. Raises PlanError for an unknown order only.
    """
    if order not in plan.ORDERS:
        raise plan.PlanError(f"the order is one of {', '.join(plan.ORDERS)}, not {order!r}")
    resources = ExitStack()
    try:
        files = resources.enter_context(open_files(paths))
        devices = _ours(files)
        mounted = [file for file in files if file.device in devices]
        asked = _asked(mounted, tensors, select, slices, order) if mounted else []
        return ask(by_mount(asked), plan_fields(order, group), resources)
    except (OSError, ValueError) as error:  # HeaderError and PlanError are ValueErrors
        _log.debug("no hint is given: %s", error)
        resources.close()
        return Hint("", (), (), resources)


def ask(
    mounts: Sequence[Sequence[Asked]], fields: Mapping[str, Any], resources: ExitStack | None = None
) -> Hint:
    """Ask the daemon of each mount for what is wanted of it; the hint closes `resources`."""
    name = os.urandom(16).hex()
    clients: list[Client] = []
    attributes: list[Asked] = []
    for asked in mounts:
        client = open_client(asked[0][0])
        if client is None:
            attributes += _ask_attributes(asked)
            continue
        clients.append(client)
        client.plan(name, [Wanted(file.inode, extents) for file, extents in asked], **fields)
    return Hint(name, clients, attributes, resources or ExitStack())


def by_mount(asked: Sequence[Asked]) -> list[list[Asked]]:
    """What is asked of each mount of fusefs; files elsewhere are left out."""
    mounts: dict[int, list[Asked]] = {one: [] for one in _ours([file for file, _ in asked])}
    for file, extents in asked:
        if file.device in mounts:
            mounts[file.device].append((file, extents))
    return list(mounts.values())


def progress(path: str | os.PathLike[str]) -> Progress | None:
    """How much of a file or folder of a mount is here; None where nobody can say."""
    try:
        if channel.filesystem_of(os.stat(path).st_dev) != channel.FSTYPE:
            return None
        found = _verb_progress(os.fspath(path))
        if (found is not None and found.total_bytes) or not os.path.isdir(path):
            return found
        # Nobody planned the folder; its files know what is here of them.
        files = [_verb_progress(file) for file in expand_paths(path)]
    except OSError:
        return None
    known = [one for one in files if one is not None]
    ready, total = (sum(one.ready_bytes for one in known), sum(one.total_bytes for one in known))
    return Progress(ready, total) if known else found


def open_client(file: OpenFile) -> Client | None:
    """A connected client for the mount a file is on, or None. It is the caller's to close."""
    folder = os.path.dirname(os.path.abspath(file.path))
    try:
        client = Client(folder, file.device, channel.connect(folder, file.device))
    except channel.NoDaemon as error:
        _log.debug("no daemon for %s: %s", file.path, error)
        return None
    client.start()
    return client


def plan_fields(order: str, group: Group | None) -> dict[str, Any]:
    """The fields of a plan that a loader's wishes become."""
    fields: dict[str, Any] = {"order": order}
    if group is not None:
        fields["group"] = {"id": group.id, "rank": group.rank, "size": group.size}
    return fields


def _ours(files: Iterable[OpenFile]) -> list[int]:
    """The devices of `files` that are mounts of fusefs."""
    devices = dict.fromkeys(file.device for file in files)
    return [one for one in devices if channel.filesystem_of(one) == channel.FSTYPE]


def _asked(
    files: Sequence[OpenFile],
    tensors: Iterable[str] | None,
    select: plan.Select | None,
    slices: Mapping[str, plan.Cut] | None,
    order: str,
) -> list[Asked]:
    """What is wanted of each file; headers are read only if names matter.

    Raises OSError, HeaderError, PlanError.
    """
    if tensors is None and select is None and not slices:
        return [(file, None) for file in files]
    parts = plan.plan_parts(
        read_headers(files), tensors=tensors, select=select, slices=slices, order=order
    )
    extents = plan.extents_by_file(parts)
    return [(files[number], tuple(of_file)) for number, of_file in extents.items()]


def _ask_attributes(
    wanted: Sequence[Asked],
) -> list[Asked]:
    """Ask by attribute, file after file; those the daemon knows the verb for."""
    asked = []
    for file, extents in wanted:
        verbs = ["prefetch"]
        if extents is not None:
            joined = plan.at_most(extents, VERBS_PER_FILE)
            verbs = [f"prefetch:{start}-{stop}" for start, stop in joined]
        answers = [channel.ask(file.fd, verb) for verb in verbs]
        if any(answer is not None for answer in answers):
            asked.append((file, extents))
    return asked


def _verb_progress(target: int | str) -> Progress | None:
    return wishes.progress_of(channel.ask(target, "progress"))
