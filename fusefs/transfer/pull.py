"""`fusefs pull`: everything below a prefix becomes a folder, with every byte of one version.

Files are fetched in pieces out of sight, checked, and renamed into place at the end, indexes last.
The one idea: what is in the bucket is somebody else's. A key becomes a path only if a mount would
show it, and no path leads out of the folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fusefs.errors import CorruptData, FusefsError
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Source, Store
from fusefs.store.folders import path_segments, remove_file, writing_translated
from fusefs.transfer.comparison import is_index, named, stage_of
from fusefs.transfer.crew import Crew, Job
from fusefs.transfer.held import FOLDER, HeldFile, open_held, remove_held
from fusefs.transfer.manifest import (
    JOURNAL,
    MANIFEST,
    NOTE_BYTES_MAX,
    decode_manifest,
    is_name,
)
from fusefs.transfer.present import Present, check_room, look
from fusefs.transfer.progress import Progress, Report, TransferCut
from fusefs.transfer.remote import PIECE_BYTES, list_below, read_small
from fusefs.tree.names import RESERVED


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that becomes a file; `sha256` if a manifest knows it."""

    name: str
    meta: ObjectMeta
    sha256: str | None


class Pull:
    """One pull of `source` into `folder`; `force` replaces what differs there.

    The mutable state of Pull, under its lock, is the count of bytes that were fetched.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        folder: str,
        crew: Crew,
        progress: Progress,
        force: bool,
    ) -> None:
        self._source = source
        self._store = store
        self._folder = folder
        self._crew = crew
        self._progress = progress
        self._force = force
        self._buffers = threading.local()

        self._lock = threading.Lock()
        self._bytes_fetched = 0

    def run(self, dry_run: bool) -> Report:
        """Do it, or with `dry_run` only find out what there would be to do.

        Raises `FusefsError`; `TransferCut` once anything was fetched.
        """
        began = time.monotonic()
        wanted, left_out = self._wanted()
        present = self._look(wanted)
        different = [w.name for w in wanted if present[w.name] is Present.DIFFERENT]
        if different and not self._force:
            raise FusefsError(
                f"{self._folder} holds something else ({named(different)}): choose another folder,"
                " or replace it with --force"
            )
        missing = [w for w in wanted if present[w.name] is not Present.EQUAL]
        size = sum(w.meta.size for w in wanted)
        fetched = sum(w.meta.size for w in missing)
        if not dry_run and missing:
            self._fetch(missing, set(different))
            fetched = self._bytes_fetched
        return Report(
            files=len(wanted),
            files_moved=len(missing),
            bytes_moved=fetched,
            bytes_there=size - fetched,
            seconds=time.monotonic() - began,
            left_out=tuple(left_out),
            moved=tuple(w.name for w in missing),
        )

    def _wanted(self) -> tuple[list[Wanted], list[str]]:
        """What is to be pulled, by name, and what cannot be, with reasons."""
        prefix, store, crew = self._source.prefix, self._store, self._crew
        key = prefix + MANIFEST
        data = read_small(store, crew, key, NOTE_BYTES_MAX)
        if data is None and read_small(store, crew, prefix + JOURNAL, NOTE_BYTES_MAX) is not None:
            raise FusefsError(
                f"{self._source.text} was not pushed to its end: push it again before pulling it"
            )
        rows = {} if data is None else {r.name: r for r in decode_manifest(data, f"{key!r}")}
        metas = {
            meta.id.key.removeprefix(prefix): meta
            for meta in list_below(store, crew, prefix, _is_hidden)
            if meta.id.key.startswith(prefix) and not meta.id.key.endswith("/")
        }
        if not metas:
            crew.retry(lambda: store.check(prefix))
        for row in rows.values():
            if row.name not in metas or metas[row.name].size != row.size:
                raise CorruptData(
                    f"{row.name!r} in {self._source.text} is not as its manifest says: push the"
                    " model again"
                )
        folders = {name[:at] for name in metas for at, sign in enumerate(name) if sign == "/"}
        wanted, left_out = [], []
        for name in sorted(metas):
            if not is_name(name) or name.split("/")[0] == FOLDER:
                left_out.append(f"{name} (no file can have this name here)")
            elif name in folders:
                left_out.append(f"{name} (a folder has the same name)")
            else:
                sha256 = rows[name].sha256 if name in rows else None
                wanted.append(Wanted(name, metas[name], sha256))
        return wanted, left_out

    def _look(self, wanted: Sequence[Wanted]) -> dict[str, Present]:
        """What the folder has of it already."""
        self._progress.begin("comparing", 0)  # how much there is to compare shows as it is done
        present: dict[str, Present] = {}

        def look_at(w: Wanted) -> None:
            present[w.name] = look(self._folder, w.name, w.meta, w.sha256, self._told)

        self._crew.run(partial(look_at, w) for w in wanted)
        return present

    def _fetch(self, missing: Sequence[Wanted], different: set[str]) -> None:
        held = [HeldFile(self._folder, w.name, w.meta) for w in missing]
        done = {file.name: file.done() for file in held}
        pieces = sum(file.pieces - len(done[file.name]) for file in held)
        size = sum(file.meta.size for file in held)
        check_room(self._folder, min(size, pieces * PIECE_BYTES))
        with open_held(self._folder):
            try:
                self._progress.begin("pulling", size)
                self._crew.run(self._jobs(held, done))
                self._check(held, {w.name: w.sha256 for w in missing})
                self._place(held, different)
            except FusefsError as error:
                raise TransferCut(str(error)) from error
            remove_held(self._folder)

    def _jobs(self, held: Sequence[HeldFile], done: dict[str, set[int]]) -> Iterator[Job]:
        for file in held:
            file.prepare(done[file.name])
            for index in range(file.pieces):
                if index in done[file.name]:
                    with self._lock:
                        self._progress.advance(_extent(file, index).size)
                else:
                    yield partial(self._fetch_piece, file, index)

    def _fetch_piece(self, file: HeldFile, index: int) -> None:
        extent = _extent(file, index)
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = bytearray(PIECE_BYTES)
        view = memoryview(buffer)[: extent.size]
        self._crew.retry(lambda: self._store.read_into(file.meta.id, extent, view))
        file.write(index, view)
        with self._lock:
            self._bytes_fetched += extent.size
            self._progress.advance(extent.size)

    def _check(self, held: Sequence[HeldFile], hashes: dict[str, str | None]) -> None:
        """Compare with the manifest. Raises `CorruptData`; what is wrong is fetched anew then."""
        known = [file for file in held if hashes[file.name] is not None]
        self._progress.begin("checking", sum(file.meta.size for file in known))

        def check(file: HeldFile) -> None:
            if file.sha256(self._told) != hashes[file.name]:
                file.drop()
                raise CorruptData(f"{file.name!r} has other bytes than its manifest says")

        self._crew.run(partial(check, file) for file in known)

    def _told(self, count: int) -> None:
        self._crew.check()
        with self._lock:
            self._progress.advance(count)

    def _place(self, held: Sequence[HeldFile], different: set[str]) -> None:
        """Give all files their names, indexes last; one that is replaced goes away first."""
        for name in sorted(filter(is_index, different)):
            with writing_translated(f"the file {name!r} in {self._folder!r}"):
                remove_file(self._folder, path_segments(name))
        for file in sorted(held, key=lambda file: (stage_of(file.name), file.name)):
            file.finish()


def _extent(file: HeldFile, index: int) -> Extent:
    start = index * PIECE_BYTES
    return Extent(start, min(start + PIECE_BYTES, file.meta.size))


def _is_hidden(prefix: str) -> bool:
    """Whether this folder is ours: what is below it is no part of any model."""
    return prefix.endswith(f"/{RESERVED}/") or prefix == f"{RESERVED}/"
