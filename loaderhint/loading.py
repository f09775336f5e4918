"""One load from paths to parts: files, plan, hint or slots, delivery. Needs no torch.

The one idea: what is wanted is told to the daemon as early as it is known. Whole files are asked
for before their headers are read; a selection, once they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from loaderhint import hints, plan
from loaderhint.client import Client
from loaderhint.delivery import THREADS, Delivery, Slots
from loaderhint.files import OpenFile, Paths, open_files, read_headers
from loaderhint.ledger import Ledger, Sink
from loaderhint.memory import cached_bytes
from loaderhint.plan import Part
from loaderhint.wishes import Group, Wanted

READY = "ready"
ORDERS = (READY, *plan.ORDERS)
"""As tensors become whole; as listed; as they lie in the files."""

READY_BYTES_MAX = 2 << 30
"""Loaded and not taken: with an engine that copies each tensor away, the memory a load needs.
More than the largest tensor of most models, so that one is loaded while another is taken."""

_FEATURE = "slots"

_log = logging.getLogger("loaderhint")


@dataclass(frozen=True, slots=True)
class Request:
    """What to load of `paths`, and how.

    `order` is "ready", "listed" or "offset"; `memory_limit_bytes` bounds what waits to be taken
    (None: nothing does), `window_bytes` what the daemon holds in slots for us.
    """

    paths: Paths
    tensors: Iterable[str] | None = None
    select: plan.Select | None = None
    slices: Mapping[str, plan.Cut] | None = None
    order: str = READY
    group: Group | None = None
    threads: int = THREADS
    memory_limit_bytes: int | None = READY_BYTES_MAX
    window_bytes: int | None = None

    @property
    def whole(self) -> bool:
        """Whether every byte is wanted."""
        return self.tensors is None and self.select is None and not self.slices


@dataclass(frozen=True, slots=True)
class Load:
    """A load that runs: its parts in the order of the plan, and where they come out."""

    paths: tuple[str, ...]
    parts: tuple[Part, ...]
    delivery: Delivery
    plane: str
    """What brings the bytes: "slots", or "files" (hinted where there is a daemon)."""


@contextmanager
def open_load(request: Request, sink: Sink) -> Iterator[Load]:
    """Load in the background until the end of the `with`.

    Raises OSError, HeaderError, PlanError for what cannot be loaded at all; errors of reading come
    from the delivery.
    """
    if request.order not in ORDERS:
        raise plan.PlanError(f"the order is one of {', '.join(ORDERS)}, not {request.order!r}")
    with ExitStack() as resources:
        files = resources.enter_context(open_files(request.paths))
        hint = _Hint(resources, files, request)
        if request.whole:
            hint.give([None] * len(files))
        parts = plan.plan_parts(
            read_headers(files),
            tensors=request.tensors,
            select=request.select,
            slices=request.slices,
            order=plan.OFFSET if request.order == plan.OFFSET else plan.LISTED,
        )
        if not request.whole:
            extents = plan.extents_by_file(parts)
            hint.give([tuple(extents.get(number, ())) for number in range(len(files))])
        limit = request.memory_limit_bytes
        ordered = request.order != READY
        ready_max = limit if limit is not None else 1 << 62
        ledger = Ledger(parts, sink, ordered, ready_max)
        delivery = Delivery(files, ledger, hint.slots, request.threads)
        resources.callback(delivery.close)
        delivery.start()
        plane = "files" if hint.slots is None else "slots"
        _log.debug("loading %d files by %s", len(files), plane)
        yield Load(tuple(file.path for file in files), tuple(parts), delivery, plane)


class _Hint:
    """The hint of one load. Errors of it are no errors of the load.

    The mutable state is `slots`, once they were promised.
    """

    def __init__(self, resources: ExitStack, files: Sequence[OpenFile], request: Request) -> None:
        self._resources = resources
        self._files = files
        self._request = request
        self.slots: Slots | None = None

    def give(self, extents: Sequence[tuple[plan.Extent, ...] | None]) -> None:
        """Ask for these extents of each file; None is all of it."""
        asked = [
            (file, of_file)
            for file, of_file in zip(self._files, extents, strict=True)
            if of_file is None or of_file
        ]
        request = self._request
        order = plan.OFFSET if request.order == plan.OFFSET else plan.LISTED
        fields = hints.plan_fields(order, request.group)
        mounts = hints.by_mount(asked)
        if len(mounts) != 1 or len(asked) != len(mounts[0]):
            self._resources.enter_context(hints.ask(mounts, fields))
            return
        client = hints.open_client(asked[0][0])
        if client is None:
            self._resources.enter_context(hints.ask(mounts, fields))
            return
        self._resources.callback(client.close)
        wanted = [Wanted(file.inode, of_file) for file, of_file in asked]
        name = os.urandom(16).hex()
        if _FEATURE in client.features and not _mostly_cached(asked):
            if request.window_bytes is not None:
                fields["window_bytes"] = request.window_bytes
            self.slots = self._map(client, name, wanted, fields)
        if self.slots is None:
            client.plan(name, wanted, **hints.plan_fields(order, request.group))

    def _map(
        self, client: Client, name: str, wanted: Sequence[Wanted], fields: dict[str, object]
    ) -> Slots | None:
        if client.plan(name, wanted, mode=_FEATURE, **fields) is None:
            return None
        mapped = client.map(name)
        if mapped is None:
            client.cancel(name)
            return None
        events, arena = mapped
        self._resources.callback(os.close, arena)
        numbers = {file.inode: number for number, file in enumerate(self._files)}
        return Slots(client, name, events, arena, numbers)


def _mostly_cached(asked: Sequence[hints.Asked]) -> bool:
    """Whether the page cache has half of the files: reading them is then faster than fetching.

    Asked of the kernel, for the daemon does not know what the kernel kept.
    """
    size = sum(file.size_bytes for file, _ in asked)
    return 2 * sum(cached_bytes(file.fd) for file, _ in asked) > size
