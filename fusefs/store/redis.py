"""Models in Redis or Valkey, one server or a cluster, as files.

Reads the layout of `redis_layout` here; a model that only SGLang wrote is left to `redis_sglang`.
The one idea: an etag names an immutable recipe, so a read asks for chunks by their content's name
and needs no look at what is current. What was replaced is gone, and then the read says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from cachetools import LRUCache

from fusefs.config import Config
from fusefs.errors import CorruptData, ObjectChanged, ObjectNotFound
from fusefs.objects import Extent, ListPage, ObjectId, ObjectMeta
from fusefs.store.base import Source, Store, Writer
from fusefs.store.redis_layout import (
    MODELS,
    Entry,
    ModelKeys,
    Recipe,
    chunk_key,
    recipe_key,
    stage_of,
)
from fusefs.store.redis_link import Link, Piece, ValueMissing, open_link
from fusefs.store.redis_sglang import SglangModel
from fusefs.store.redis_write import RedisWriter

_RECIPES_MAX = 256
"""Recipes kept: one per open file. A shard of 5 GB has one of 80 kB."""


class RedisStore:
    """Obeys `fusefs.store.base.Store` for one model, or for all that were published (`model` "").

    Not a page per request: a model is listed by one answer of a few hundred bytes per file.
    """

    def __init__(self, link: Link, model: str) -> None:
        self._link = link
        self._model = model
        self._lock = threading.Lock()
        # The mutable state of RedisStore: recipes by etag, which never become wrong, and what
        # SGLang wrote under the name of our model, once it was looked for.
        self._recipes: LRUCache[str, Recipe] = LRUCache(_RECIPES_MAX)
        self._sglang: SglangModel | None = None

    def check(self, prefix: str) -> None:
        """See `Store`. Two requests, if the first finds nothing of ours."""
        page = self.list_page(prefix, None)
        if prefix and not (page.objects or page.prefixes):
            raise ObjectNotFound(
                f"{self._where()} holds nothing below {_shown(prefix)}: push a model of that name,"
                " or look at the names with fusefs ls"
            )

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """See `Store`."""
        what = f"the listing of {_shown(prefix)} at {self._where()}"
        objects: dict[str, ObjectMeta] = {}
        prefixes: set[str] = set()
        for model in self._models(what):
            if prefix.startswith(model.prefix):
                entries = self._entries(model, what)
                for path, entry in entries.items():
                    key = model.prefix + path
                    if not key.startswith(prefix):
                        continue
                    name, slash, _ = key[len(prefix) :].partition("/")
                    if slash:
                        prefixes.add(f"{prefix}{name}/")
                    else:
                        objects[key] = entry.meta(key)
            elif model.prefix.startswith(prefix) and not (
                self._model and not self._entries(model, what)
            ):
                prefixes.add(prefix + model.prefix[len(prefix) :].partition("/")[0] + "/")
        return ListPage(tuple(objects.values()), tuple(sorted(prefixes)), None)

    def head(self, key: str) -> ObjectMeta:
        """See `Store`. Of nested models, the one with the longest name has the key."""
        what = self._object(key)
        owners = [model for model in self._models(what) if key.startswith(model.prefix)]
        for model in sorted(owners, key=lambda model: len(model.name), reverse=True):
            path = key[len(model.prefix) :]
            raw = self._field(model, path, what)
            if raw is not None:
                return Entry.decode(raw, what).meta(key)
            if self._model and (sglang := self._look_for_sglang(model, what)):
                entry = sglang.entries().get(path)
                if entry is not None:
                    return entry.meta(key)
        raise ObjectNotFound(f"{what} does not exist")

    def read_into(
        self,
        id: ObjectId,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None = None,
    ) -> None:
        """See `Store`."""
        what = self._object(id.key)
        if SglangModel.owns(id.etag):
            model = ModelKeys(self._model)
            sglang = self._sglang or SglangModel(self._link, model.name)
            sglang.read_into(id.key[len(model.prefix) :], id.etag, extent, buffer, landed)
            return
        recipe = self._recipe(id.etag, what)
        if extent.stop > recipe.size:
            raise CorruptData(f"{what} has {recipe.size} bytes, and none beyond")
        try:
            self._link.read_into(_pieces(recipe, id.etag, extent), buffer, landed, what)
        except ValueMissing as missing:
            raise self._lost(id.etag, what) from missing

    def close(self) -> None:
        """See `Store`."""
        self._link.close()

    def _models(self, what: str) -> Iterable[ModelKeys]:
        if self._model:
            return (ModelKeys(self._model),)
        names = self._link.run(what, lambda client: client.smembers(MODELS))
        return [ModelKeys(name.decode(errors="replace")) for name in names]

    def _field(self, model: ModelKeys, path: str, what: str) -> bytes | None:
        raw: bytes | None = self._link.run(what, lambda client: client.hget(model.files, path))
        return raw

    def _entries(self, model: ModelKeys, what: str) -> dict[str, Entry]:
        found: dict[bytes, bytes] = self._link.run(what, lambda c: c.hgetall(model.files))
        entries = {
            path.decode(errors="replace"): Entry.decode(raw, what) for path, raw in found.items()
        }
        if not entries and self._model and (sglang := self._look_for_sglang(model, what)):
            return sglang.entries()
        return entries

    def _look_for_sglang(self, model: ModelKeys, what: str) -> SglangModel | None:
        """What SGLang wrote under that name, unless a model of ours has been published there."""
        if self._link.run(what, lambda client: client.exists(model.manifest)):
            return None
        if self._sglang is None:
            found = SglangModel(self._link, model.name)
            if not found.entries():
                return None
            self._sglang = found
        return self._sglang

    def _recipe(self, etag: str, what: str) -> Recipe:
        with self._lock:
            recipe = self._recipes.get(etag)
        if recipe is None:
            raw: bytes | None = self._link.run(what, lambda c: c.get(recipe_key(etag)))
            if raw is None:
                raise ObjectChanged(f"{what} was overwritten or deleted")
            recipe = Recipe.decode(raw, what)
            if recipe.etag(stage_of(etag)) != etag:
                raise CorruptData(f"{what} has a recipe with a wrong checksum; push it again")
            with self._lock:
                self._recipes[etag] = recipe
        return recipe

    def _lost(self, etag: str, what: str) -> Exception:
        """Why a chunk is not there. Who removes a version removes its recipe first."""
        with self._lock:
            self._recipes.pop(etag, None)
        if self._link.run(what, lambda client: client.exists(recipe_key(etag))):
            return CorruptData(
                f"{what} has lost a chunk: set the server's maxmemory-policy to noeviction, and"
                " push the model again"
            )
        return ObjectChanged(f"{what} was overwritten or deleted")

    def _where(self) -> str:
        return f"the server {self._link.address}"

    def _object(self, key: str) -> str:
        """The subject of a sentence."""
        return f"the object {_shown(key)} at {self._link.address}"


def open_store(source: Source, config: Config) -> Store:
    """Make the store of a `redis://` or `rediss://` source."""
    return RedisStore(open_link(source, config), source.bucket)


def open_writer(source: Source, config: Config) -> Writer:
    """Make what writes the model that `source` names, or the one without a name."""
    return RedisWriter(open_link(source, config), source.bucket)


def preload() -> None:
    """Nothing is left to load: with this module, redis-py was."""


def _pieces(recipe: Recipe, etag: str, extent: Extent) -> list[Piece]:
    """Which bytes of which chunks make up `extent`."""
    pieces = []
    stage = stage_of(etag)
    at = extent.start
    while at < extent.stop:
        index, offset = divmod(at, recipe.chunk_bytes)
        stop = min(recipe.length(index), offset + extent.stop - at)
        pieces.append(Piece(chunk_key(stage, recipe.chunks[index]), offset, stop))
        at += stop - offset
    return pieces


def _shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 bytes if it has them."""
    text: Any = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"
