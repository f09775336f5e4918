"""`fusefs push`: a folder becomes a model in a store, whole or not at all as readers see it.

What a reader looks at first comes last: weights, then configuration, then indexes, then the
manifest. The one idea: the journal, written before anything else, makes an attempt known to the
next one, so that a push that was cut goes on when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fusefs.errors import CorruptData, FusefsError, ObjectNotFound
from fusefs.objects import ObjectMeta
from fusefs.store.base import Source, Store, Writer
from fusefs.store.checksums import NOTE, NoteRow, encode_note
from fusefs.transfer.comparison import PushPlan, There, compare, is_index, named, stage_of
from fusefs.transfer.crew import Crew
from fusefs.transfer.local import LocalFile, check_apart, check_keys, hash_all, scan
from fusefs.transfer.manifest import (
    JOURNAL,
    MANIFEST,
    NOTE_BYTES_MAX,
    FileRow,
    decode_journal,
    decode_manifest,
    encode_journal,
    encode_manifest,
)
from fusefs.transfer.progress import Progress, Report, TransferCut
from fusefs.transfer.remote import list_folder, read_small
from fusefs.transfer.upload import Uploader

T = TypeVar("T")

_STAGES = 3


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to: what was typed, and both ways of access to it."""

    source: Source
    store: Store
    writer: Writer

    def key(self, name: str) -> str:
        """The full key of a name of the model."""
        return self.source.prefix + name


class Push:
    """One push of `folder`; `force` replaces another model."""

    def __init__(
        self, folder: str, destination: Destination, crew: Crew, progress: Progress, force: bool
    ) -> None:
        self._folder = folder
        self._destination = destination
        self._crew = crew
        self._progress = progress
        self._force = force

    def run(self, dry_run: bool) -> Report:
        """Do it, or with `dry_run` only find out what there would be to do.

        Raises `FusefsError`; `TransferCut` once anything was changed.
        """
        began = time.monotonic()
        files, left_out = scan(self._folder)
        if not files:
            raise FusefsError(f"{self._folder} holds no files to push")
        if self._destination.source.scheme == "file":
            check_apart(self._folder, self._destination.source.bucket)
        else:
            check_keys(self._destination.source.prefix, files)
        rows, crcs = hash_all(files, self._crew, self._progress)
        there = self._look(rows)
        plan = compare(rows, there)
        self._refuse(plan)
        by_name = {file.name: file for file in files}
        bytes_sent, bytes_there = sum(row.size for row in plan.send), 0
        if not dry_run:
            try:
                if self._has_work(plan, there):
                    uploader = self._write(plan, there, by_name, crcs)
                    bytes_sent, bytes_there = uploader.bytes_sent, uploader.bytes_there
                elif self._note_checksums(plan, there, {}, crcs):
                    self._publish()
            except FusefsError as error:
                raise TransferCut(str(error)) from error
        return Report(
            files=len(files),
            files_moved=len(plan.send),
            bytes_moved=bytes_sent,
            bytes_there=bytes_there + sum(row.size for row in plan.keep),
            seconds=time.monotonic() - began,
            removed=plan.remove,
            left_out=tuple(f"{name} (not part of a model)" for name in left_out),
            moved=tuple(row.name for row in plan.send),
        )

    def _has_work(self, plan: PushPlan, there: There) -> bool:
        wrong = there.manifest is None or set(there.manifest) != {*plan.send, *plan.keep}
        return bool(plan.send or plan.remove or wrong or there.journal is not None)

    def _look(self, rows: list[FileRow]) -> There:
        """What the destination holds in the folders of this model and of the one before."""
        source = self._destination.source
        manifest = self._note(MANIFEST, decode_manifest)
        journal = self._note(JOURNAL, decode_journal)
        names = {
            row.name for row in [*rows, *(manifest or ()), *(journal.files if journal else ())]
        }
        objects: dict[str, ObjectMeta] = {}
        folders: set[str] = set()
        for folder in sorted({name.rpartition("/")[0] for name in names} | {""}):
            prefix = source.prefix + (f"{folder}/" if folder else "")
            try:
                for page in list_folder(self._destination.store, self._crew, prefix):
                    objects |= {m.id.key.removeprefix(source.prefix): m for m in page.objects}
                    folders |= {p.removeprefix(source.prefix)[:-1] for p in page.prefixes}
            except ObjectNotFound:
                if source.scheme != "file":  # pushing makes a folder, and never a bucket
                    raise
        return There(objects, frozenset(folders), manifest, journal)

    def _note(self, name: str, decode: Callable[[bytes, str], T]) -> T | None:
        key = self._destination.key(name)
        data = read_small(self._destination.store, self._crew, key, NOTE_BYTES_MAX)
        if data is None:
            return None
        try:
            return decode(data, f"{key!r}")
        except CorruptData:
            if self._force:
                return None
            raise

    def _refuse(self, plan: PushPlan) -> None:
        where = self._destination.source.text
        if plan.impossible:
            raise FusefsError(
                f"{where} has a file where the folder has a folder, or the other way round"
                f" ({named(plan.impossible)}): take it away there first"
            )
        if plan.conflicts and not self._force:
            raise FusefsError(
                f"{where} holds something else ({named(plan.conflicts)}): choose another place, or"
                " replace it with --force"
            )

    def _write(
        self,
        plan: PushPlan,
        there: There,
        files: dict[str, LocalFile],
        crcs: Mapping[str, bytes],
    ) -> Uploader:
        source, writer = self._destination.source, self._destination.writer
        crew = self._crew
        journal = encode_journal(plan.journal)
        crew.retry(lambda: writer.put(self._destination.key(JOURNAL), journal))
        self._take_away(plan, there)
        uploader = Uploader(writer, source.prefix, crew, self._progress)
        self._progress.begin("pushing", sum(row.size for row in plan.send))
        for stage in range(_STAGES):
            uploader.upload_all(
                [files[row.name] for row in plan.send if stage_of(row.name) == stage]
            )
        for name in plan.remove:
            self._delete(name)
        self._note_checksums(plan, there, uploader.arrived, crcs)
        manifest = encode_manifest([*plan.send, *plan.keep])
        crew.retry(lambda: writer.put(self._destination.key(MANIFEST), manifest))
        self._delete(JOURNAL)
        self._publish()
        return uploader

    def _publish(self) -> None:
        destination = self._destination
        self._crew.retry(lambda: destination.writer.publish(destination.source.prefix))

    def _note_checksums(
        self,
        plan: PushPlan,
        there: There,
        arrived: Mapping[str, ObjectMeta],
        crcs: Mapping[str, bytes],
    ) -> bool:
        """Have the checksums of all files beside them, for mounts; False if they are there."""
        rows = {}
        for row in [*plan.send, *plan.keep]:
            meta = arrived.get(row.name) or there.objects[row.name]
            rows[row.name] = NoteRow(row.size, meta.id.etag, crcs[row.name])
        note = encode_note(rows)
        key = self._destination.key(NOTE)
        if read_small(self._destination.store, self._crew, key, NOTE_BYTES_MAX) == note:
            return False
        self._crew.retry(lambda: self._destination.writer.put(key, note))
        return True

    def _take_away(self, plan: PushPlan, there: There) -> None:
        """Remove what says that there is a whole model, before it becomes a mixture."""
        replaced = {row.name for row in plan.send if row.name in there.objects}
        if not replaced and not plan.remove:
            return
        if there.manifest is not None:
            self._delete(MANIFEST)
        for name in sorted({*replaced, *plan.remove} & there.objects.keys()):
            if is_index(name):
                self._delete(name)

    def _delete(self, name: str) -> None:
        key = self._destination.key(name)
        self._crew.retry(lambda: self._destination.writer.delete(key))


def discard(destination: Destination, crew: Crew) -> int:
    """Remove what pushes that were cut left below the destination; how many files that concerned.

    Whole files that they wrote stay: the next push of the same files finds them.
    """
    return crew.retry(lambda: destination.writer.discard(destination.source.prefix))
