"""What a push has to do, decided from what is here and what is there. Pure: no I/O.

The one idea: push replaces only what it knows. A file that an earlier push noted in the manifest,
or that this very push wrote before it was cut, is known; everything else under the same names, and
the weights of another model beside them, belong to somebody, and only `--force` goes over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusefs.objects import ObjectMeta
from fusefs.policy.companions import is_companion_name
from fusefs.transfer.manifest import FileRow, Journal

_WEIGHTS = (".safetensors", ".gguf", ".index.json")
"""What makes a folder a model's: those of two models in one folder are one broken model."""

NAMED_MAX = 3
"""Names in a sentence; the rest is counted."""


@dataclass(frozen=True, slots=True)
class There:
    """What the destination holds in the folders that matter, by name below the prefix."""

    objects: Mapping[str, ObjectMeta]
    folders: frozenset[str]
    manifest: tuple[FileRow, ...] | None
    journal: Journal | None


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What to do, and in `conflicts` what speaks against it without `--force`."""

    send: tuple[FileRow, ...]
    keep: tuple[FileRow, ...]
    remove: tuple[str, ...]
    before: Mapping[str, str]
    conflicts: tuple[str, ...]
    impossible: tuple[str, ...]
    goes_on: bool
    """An attempt at the same was cut, and this one goes on with it."""

    @property
    def journal(self) -> Journal:
        """What to note before the first change."""
        return Journal(tuple(sorted([*self.send, *self.keep])), dict(self.before), self.remove)


def compare(wanted: Sequence[FileRow], there: There) -> PushPlan:
    """Decide for each file; the order of `wanted` stays."""
    names = {row.name for row in wanted}
    known = {row.name: row for row in there.manifest or ()}
    journal = there.journal
    goes_on = journal is not None and set(journal.files) == set(wanted)
    written = _written(journal, there.objects)

    def is_there(row: FileRow) -> bool:
        meta = there.objects.get(row.name)
        return (
            meta is not None
            and meta.size == row.size
            and (known.get(row.name) == row or written.get(row.name) == row)
        )

    keep = [row for row in wanted if is_there(row)]
    dropped = {*known, *written, *(journal.remove if journal else ())}
    remove = tuple(sorted(dropped - names))
    kept = {row.name for row in keep}
    differing = [r.name for r in wanted if r.name not in kept and r.name in there.objects]
    if differing or remove:
        # An index that stays the same goes away first all the same: nobody may find it among the
        # shards of two models.
        keep = [row for row in keep if not is_index(row.name)]
        kept = {row.name for row in keep}
    send = tuple(row for row in wanted if row.name not in kept)
    if journal is not None and goes_on:
        before, conflicts = journal.before, []
    else:
        before = {r.name: there.objects[r.name].id.etag for r in send if r.name in there.objects}
        strangers = [
            name
            for name in there.objects
            if name not in names and name not in dropped and name.endswith(_WEIGHTS)
        ]
        conflicts = sorted({*differing, *strangers, *remove})
    above = {name[:at] for name in names for at, sign in enumerate(name) if sign == "/"}
    impossible = sorted((above & there.objects.keys()) | (names & there.folders))
    return PushPlan(send, tuple(keep), remove, before, tuple(conflicts), tuple(impossible), goes_on)


def is_index(name: str) -> bool:
    """Whether this file says which weights there are: readers look at it first."""
    return name.endswith(".index.json")


def stage_of(name: str) -> int:
    """When a file goes: weights first (0), then what is read before them (1), then indexes (2)."""
    if is_index(name):
        return 2
    return 1 if is_companion_name(name) else 0


def named(names: Sequence[str]) -> str:
    """The first few names, as a sentence has them."""
    shown = ", ".join(names[:NAMED_MAX])
    left = len(names) - NAMED_MAX
    return f"{shown} and {left} more" if left > 0 else shown


def _written(journal: Journal | None, objects: Mapping[str, ObjectMeta]) -> dict[str, FileRow]:
    """The files that the attempt of this journal wrote, or found to be right."""
    if journal is None:
        return {}
    return {
        row.name: row
        for row in journal.files
        if row.name in objects
        and objects[row.name].size == row.size
        and objects[row.name].id.etag != journal.before.get(row.name)
    }
