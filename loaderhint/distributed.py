"""Loading by all ranks of a job: each byte comes out of the bucket once.

Ranks that share a mount load alone, as a group, since their daemon fetches each block once and one
copy out of its memory is cheaper than any broadcast. Ranks on several mounts split the reads, and
who read a tensor broadcasts it.

The one idea: everything that all ranks must do alike is decided from what all ranks know alike: the
headers, compared before the first byte, and the order of the plan. A rank that cannot read says so
in its turn, so that the others raise, too, and none of them waits for ever.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from loaderhint import plan
from loaderhint.delivery import THREADS
from loaderhint.files import Paths, open_files, read_headers
from loaderhint.loading import READY_BYTES_MAX
from loaderhint.plan import Part
from loaderhint.tensors import shape
from loaderhint.torch import Device
from loaderhint.torch import iterate_files as iterate_alone
from loaderhint.wishes import Group

BATCH_BYTES = 64 << 20
"""Small tensors are broadcast together, so many bytes at a time: a broadcast costs a round trip.
A tensor that is larger goes alone, straight into its memory: beside the tensors themselves a rank
needs this much, and what it has read ahead."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class PeerFailed(RuntimeError):
    """Another rank cannot load, so none does; it raises the reason itself."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a rank tells the others before anything is read."""

    share: str
    token: str
    digest: str
    error: str | None


def iterate_files(
    paths: Paths,
    *,
    device: Device = "cpu",
    tensors: Iterable[str] | None = None,
    select: plan.Select | None = None,
    process_group: dist.ProcessGroup | None = None,
    share: str | None = None,
    threads: int = THREADS,
    memory_limit_bytes: int | None = READY_BYTES_MAX,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Yield `(name, tensor)` of all that is wanted, on every rank of `process_group`.

    Every rank calls this with the same wishes; paths may differ, the files must not. Where reads
    are split, all ranks get the same order, and each must take all tensors: one that stops leaves
    the others waiting until the timeout of their group.

    Args:
        paths: as `loaderhint.torch.iterate_files` has them, like the following.
        device: where the tensors go; of the group's backend, "cuda…" for nccl.
        tensors: only these names.
        select: only the names it is true for.
        process_group: the ranks; by default all of the job.
        share: ranks with the same word read through the same mount. By default this host and the
            device of the first file.
        threads: reads at a time.
        memory_limit_bytes: read ahead and not yet taken, on each rank; None for no limit.

    Raises:
        OSError, HeaderError, PlanError: this rank cannot load.
        PeerFailed: another cannot, or has other files.
    """
    names = None if tensors is None else list(tensors)
    parts, said, error = _prepare(paths, names, select, share)
    world = dist.get_world_size(process_group)
    all_said: list[Any] = [None] * world
    dist.all_gather_object(all_said, said, group=process_group)
    _check(all_said, error)
    rank = dist.get_rank(process_group)
    common: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "memory_limit_bytes": memory_limit_bytes,
    }
    if len({one.share for one in all_said}) == 1:
        group = Group(all_said[0].token, rank, world)
        yield from iterate_alone(paths, tensors=names, select=select, group=group, **common)
        return
    batches = list(_batches(parts))
    owners = _owners([one.share for one in all_said])
    turns = [owners[number % world] for number in range(len(batches))]
    mine = [
        part.name
        for batch, owner in zip(batches, turns, strict=True)
        if owner == rank
        for part in batch
    ]
    with closing(iterate_alone(paths, tensors=mine, order=plan.LISTED, **common)) as read:
        channel = _Broadcast(process_group, torch.device(device), rank)
        for batch, owner in zip(batches, turns, strict=True):
            yield from channel.batch(batch, owner, read)


def _prepare(
    paths: Paths, tensors: list[str] | None, select: plan.Select | None, share: str | None
) -> tuple[list[Part], _Said, Exception | None]:
    """The plan of this rank and what it says of it; an error is said first and raised later."""
    token = os.urandom(16).hex()
    try:
        with open_files(paths) as files:
            if share is None:
                share = f"{_boot_id()} {files[0].device if files else 0}"
            parts = plan.plan_parts(read_headers(files), tensors=tensors, select=select)
    except (OSError, ValueError) as error:
        return [], _Said("", token, "", f"{type(error).__name__}: {error}"), error
    table = "\n".join(
        f"{one.name!r} {one.tensor.dtype} {one.shape} {one.file} {one.start}" for one in parts
    )
    return parts, _Said(share, token, hashlib.sha256(table.encode()).hexdigest(), None), None


def _check(all_said: Sequence[_Said], error: Exception | None) -> None:
    """Raise on every rank, or on none."""
    if error is not None:
        raise error
    for rank, said in enumerate(all_said):
        if said.error is not None:
            raise PeerFailed(f"rank {rank} cannot load: {said.error}")
    for rank, said in enumerate(all_said):
        if said.digest != all_said[0].digest:
            raise PeerFailed(f"rank {rank} has other files, or wants other tensors, than rank 0")


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Neighbours of the plan, BATCH_BYTES together; a larger part alone."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        if batch and size + part.size_bytes > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.size_bytes
    if batch:
        yield batch


def _owners(shares: Sequence[str]) -> list[int]:
    """The ranks, neighbours on different mounts: whoever waits for one, the other reads on."""
    seen: dict[str, int] = {}
    turns = []
    for rank, share in enumerate(shares):
        seen[share] = seen.get(share, -1) + 1
        turns.append((seen[share], rank))
    return [rank for _, rank in sorted(turns)]


def _boot_id() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()


class _Broadcast:
    """Batches from their owner to everybody. Constant but for the group's own state."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device, rank: int) -> None:
        self._group = group
        self._device = device
        self._rank = rank

    def batch(
        self, parts: Sequence[Part], owner: int, read: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one batch. Raises what reading raises, PeerFailed elsewhere."""
        tensors: list[torch.Tensor] = []
        error: Exception | None = None
        if self._rank == owner:
            try:
                tensors = [next(read)[1] for _ in parts]
            except Exception as caught:  # noqa: BLE001 said to the others first, raised below
                error = caught
        self._agree(owner, error)
        flats = [_bytes_of(tensor) for tensor in tensors]
        if len(parts) == 1:
            flats = [self._send(owner, flats[0] if flats else self._empty(parts[0].size_bytes))]
        else:
            sizes = [part.size_bytes for part in parts]
            together = torch.cat(flats) if flats else self._empty(sum(sizes))
            pieces = self._send(owner, together).split(sizes)
            flats = flats or [piece.clone() for piece in pieces]
        for number, part in enumerate(parts):
            yield part.name, tensors[number] if tensors else shape(part, flats[number])

    def _agree(self, owner: int, error: Exception | None) -> None:
        """Hear from the owner whether it has read the batch. Raises if it has not."""
        failed = torch.tensor([error is not None], dtype=torch.uint8, device=self._device)
        self._send(owner, failed)
        if not failed.item():
            return
        reason = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(reason, self._source(owner), group=self._group)
        if error is not None:
            raise error
        raise PeerFailed(f"rank {owner} cannot load: {reason[0]}")

    def _send(self, owner: int, flat: torch.Tensor) -> torch.Tensor:
        if flat.numel():
            dist.broadcast(flat, self._source(owner), group=self._group)
        return flat

    def _source(self, owner: int) -> int:
        return owner if self._group is None else dist.get_global_rank(self._group, owner)

    def _empty(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of an owned tensor, flat, without a copy."""
    return (
        tensor.reshape(-1).view(torch.uint8)
        if tensor.numel()
        else tensor.new_empty(0).view(torch.uint8)
    )
