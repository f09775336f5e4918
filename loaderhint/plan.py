"""From tensors to extents: what a loader wants of its files, in the order it wants it.

Pure functions on headers; nothing here reads a file or talks to a daemon. The one idea: a part is
what one tensor contributes, one contiguous extent. A slice of the first dimension is fewer bytes of
the file; a slice of another dimension is not, since its rows lie apart and a request for each would
cost more than the bytes between them: the whole tensor is fetched and cut when it is handed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loaderhint.header import DTYPE_BITS, Header, TensorInfo

LISTED, OFFSET = "listed", "offset"
ORDERS = (LISTED, OFFSET)
"""As the loader names the tensors (without names: as they lie in the file), or as they lie."""

Extent = tuple[int, int]
"""Bytes `[start, stop)` of a file."""

Cut = slice | tuple[slice, ...] | None
"""A slice of the first dimension, or one slice for each of the first dimensions; None is all."""

Select = Callable[[str], bool]

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_WEIGHTS = (".weight", ".weight_packed")


class PlanError(ValueError):
    """What was asked for is not in the files, or cannot be cut like that."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is wanted of one tensor: bytes `[start, stop)` of file number `file`.

    `shape` is that of these bytes; `cut` is what remains to be sliced off once they are there.
    """

    file: int
    tensor: TensorInfo
    start: int
    stop: int
    shape: tuple[int, ...]
    cut: tuple[slice, ...] = ()

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch."""
        return self.stop - self.start


def plan_parts(
    headers: Sequence[Header],
    *,
    tensors: Iterable[str] | None = None,
    select: Select | None = None,
    slices: Mapping[str, Cut] | None = None,
    order: str = LISTED,
) -> list[Part]:
    """The parts wanted of files with these headers.

    `tensors` are names, in the order wanted; without it every tensor is, file after file. `select`
    keeps the names it is true for. Raises PlanError for names that no file has or two have, and for
    slices that cannot be.
    """
    if order not in ORDERS:
        raise PlanError(f"the order is one of {', '.join(ORDERS)}, not {order!r}")
    places = _places(headers)
    names: Iterable[str] = places if tensors is None else _listed(tensors, places)
    cuts = slices or {}
    _check_known(cuts, places)
    wanted = [name for name in names if select is None or select(name)]
    parts = [_part(*places[name], cuts.get(name)) for name in wanted]
    if order == OFFSET:
        parts.sort(key=lambda part: (part.file, part.start, part.stop))
    return parts


def extents_by_file(parts: Iterable[Part]) -> dict[int, list[Extent]]:
    """The extents of `parts` for each file, in their order; those that touch in turn are one.

    Files come in the order of their first part. Tensors without bytes have no extent.
    """
    files: dict[int, list[Extent]] = {}
    for part in parts:
        if part.start == part.stop:
            continue
        extents = files.setdefault(part.file, [])
        if extents and extents[-1][1] == part.start:
            extents[-1] = (extents[-1][0], part.stop)
        else:
            extents.append((part.start, part.stop))
    return files


def at_most(extents: Iterable[Extent], count: int) -> list[Extent]:
    """These extents by offset, joined over the smallest gaps until there are at most `count`.

    What lies in a gap is fetched for nothing: of two limits, the number of messages and the bytes,
    this keeps the first. `count` is at least 1.
    """
    joined: list[Extent] = []
    for start, stop in sorted(extents):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    surplus = len(joined) - count
    if surplus <= 0:
        return joined
    gaps = sorted(range(1, len(joined)), key=lambda n: joined[n][0] - joined[n - 1][1])
    bridged = frozenset(gaps[:surplus])
    result = joined[:1]
    for number, extent in enumerate(joined[1:], 1):
        if number in bridged:
            result[-1] = (result[-1][0], extent[1])
        else:
            result.append(extent)
    return result


def keep_experts(experts: Collection[int]) -> Select:
    """A `select` for expert parallelism: without the weights of other experts.

    As vLLM's filter, it skips `….experts.N.….weight` and `.weight_packed` and keeps scales, which
    engines read of every expert.
    """
    kept = frozenset(experts)

    def select(name: str) -> bool:
        match = _EXPERT.search(name)
        return not match or int(match[1]) in kept or not name.endswith(_WEIGHTS)

    return select


def keep_layers(layers: Collection[int]) -> Select:
    """A `select` for a stage of a pipeline: these layers, and all that belongs to no layer."""

    def select(name: str) -> bool:
        match = _LAYER.search(name)
        return not match or int(match[1]) in layers

    return select


def _places(headers: Sequence[Header]) -> dict[str, tuple[int, TensorInfo]]:
    places: dict[str, tuple[int, TensorInfo]] = {}
    for number, header in enumerate(headers):
        for tensor in header.tensors:
            if tensor.name in places:
                raise PlanError(f"two files have a tensor {tensor.name!r}; load them one by one")
            places[tensor.name] = (number, tensor)
    return places


def _listed(tensors: Iterable[str], places: Mapping[str, object]) -> list[str]:
    if isinstance(tensors, str):
        raise PlanError("tensors is a list of names, not one name")
    names = list(dict.fromkeys(tensors))
    _check_known(names, places)
    return names


def _check_known(names: Iterable[str], places: Mapping[str, object]) -> None:
    unknown = sorted(name for name in names if name not in places)
    if unknown:
        raise PlanError(f"no file has the tensor {unknown[0]!r} ({len(unknown)} names unknown)")


def _part(file: int, tensor: TensorInfo, cut: Cut) -> Part:
    slices = (cut,) if isinstance(cut, slice) else tuple(cut or ())
    if not slices:
        return Part(file, tensor, tensor.start, tensor.stop, tensor.shape)
    if len(slices) > len(tensor.shape):
        raise PlanError(
            f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions, not {len(slices)}"
        )
    for one in slices:
        if one.step not in (None, 1):
            raise PlanError(f"tensor {tensor.name!r}: slices have a step of 1")
    rows = tensor.shape[0]
    first, last, _ = slices[0].indices(rows)
    last = max(first, last)
    row_bits = DTYPE_BITS[tensor.dtype]
    for dimension in tensor.shape[1:]:
        row_bits *= dimension
    if first * row_bits % 8 or last * row_bits % 8:
        raise PlanError(f"rows {first} to {last} of tensor {tensor.name!r} are no whole bytes")
    start = tensor.start + first * row_bits // 8
    stop = tensor.start + last * row_bits // 8
    shape = (last - first, *tensor.shape[1:])
    # What is left once the rows are right: nothing, if the other slices keep everything.
    rest = slices[1:]
    sizes = tensor.shape[1 : len(slices)]
    whole = all(one.indices(size)[:2] == (0, size) for one, size in zip(rest, sizes, strict=True))
    return Part(file, tensor, start, stop, shape, () if whole else (slice(None), *rest))
