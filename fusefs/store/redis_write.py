"""A model on its way into Redis: chunks and recipes first, then all of it at once.

Writes the layout of `redis_layout`. The one idea: everything is written into a *stage* that no
reader looks at, and `publish` moves the names of a whole model over in one script. A stage has one
owner, the writer that began last: an earlier one fails at its next step, and what it had brought
is there for the new one, since chunks are named by their content.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fusefs.errors import CorruptData, FusefsError, InternalError, ObjectChanged, StoreUnavailable
from fusefs.objects import ObjectMeta
from fusefs.store.redis_layout import (
    CHUNK_BYTES,
    MODELS,
    Entry,
    ModelKeys,
    Recipe,
    chunk_key,
    recipe_key,
    stage_of,
)
from fusefs.store.redis_link import Link, Piece, ValueMissing

_BATCH_KEYS = 1000
"""Keys per pipeline: a server answers them within a few milliseconds."""

_OWNED = "if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end\n"

_TAKE = """
local id = redis.call('HGET', KEYS[1], 'id') or ARGV[2]
redis.call('HSET', KEYS[1], 'id', id, 'owner', ARGV[1])
redis.call('DEL', KEYS[2])
return id
"""

_BEGIN = _OWNED + "redis.call('HSETNX', KEYS[2], ARGV[2], '')\nreturn 1"

_DELETE = _OWNED + "redis.call('HSET', KEYS[2], ARGV[2], '-')\nreturn 1"

_REGISTER = _OWNED + "redis.call('SADD', KEYS[2], ARGV[2])\nreturn 1"

_COMMIT = (
    _OWNED
    + """
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then return 0 end
local now = redis.call('TIME')
local entry = string.format('{"size": %s, "mtime_ns": %s%06d000, "etag": "%s"}',
  ARGV[3], now[1], tonumber(now[2]), ARGV[4])
redis.call('HSET', KEYS[2], ARGV[2], entry)
return entry
"""
)

_PUBLISH = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  if redis.call('HGET', KEYS[4], 'stage') == ARGV[2] then return 1 end
  return 0
end
local staged = redis.call('HGETALL', KEYS[2])
for i = 1, #staged, 2 do
  local old = staged[i + 1] ~= '' and redis.call('HGET', KEYS[3], staged[i])
  if old then
    redis.call('HINCRBY', KEYS[5], string.match(cjson.decode(old).etag, '^[^-]*'), 1)
  end
  if staged[i + 1] == '-' then redis.call('HDEL', KEYS[3], staged[i])
  elseif staged[i + 1] ~= '' then redis.call('HSET', KEYS[3], staged[i], staged[i + 1]) end
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HINCRBY', KEYS[5], ARGV[2], 1)
local now = redis.call('TIME')
redis.call('HINCRBY', KEYS[4], 'generation', 1)
redis.call('HSET', KEYS[4], 'state', 'READY', 'stage', ARGV[2], 'changed_ms',
  string.format('%s%03d', now[1], math.floor(tonumber(now[2]) / 1000)))
return 1
"""
"""The second time it finds that it was done: its first answer may have been lost."""

_DISCARD = """
local count = 0
for _, path in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.sub(path, 1, #ARGV[1]) == ARGV[1] then
    redis.call('HDEL', KEYS[2], path)
    count = count + 1
  end
end
local id = redis.call('HGET', KEYS[1], 'id')
if ARGV[1] == '' and id then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HINCRBY', KEYS[3], id, 1)
end
return count
"""

_SURVEY = """
return {redis.call('HGETALL', KEYS[1]), redis.call('HVALS', KEYS[2])}
"""
"""In one step: a stage that ended gets no new names, so what has none now never will."""

_SWEPT = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""
"""Unless another version of it was replaced meanwhile."""


class RedisWriter:
    """Obeys `fusefs.store.base.Writer` for one model.

    Nothing of what it does, deletions included, is seen before `publish`.
    """

    def __init__(self, link: Link, model: str) -> None:
        self._link = link
        self._keys = ModelKeys(model)
        self._owner = secrets.token_hex(8)
        self._lock = threading.Lock()
        # The mutable state of RedisWriter is the stage it owns, from its first write to `publish`.
        self._stage: str | None = None

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        upload = self._begin(key, len(data))
        for index, start in enumerate(range(0, len(data), upload.part_bytes)):
            upload.put_part(index, memoryview(data)[start : start + upload.part_bytes])
        return upload.commit()

    def begin(self, key: str, size: int) -> RedisUpload:
        """See `Writer`."""
        return self._begin(key, size)

    def delete(self, key: str) -> None:
        """See `Writer`. The name goes with `publish`."""
        what = self._what(key)
        self._take(what)
        self.run_owned(_DELETE, self._keys.staged, what, self._path(key))

    def discard(self, prefix: str) -> int:
        """See `Writer`. Chunks go once the whole model's stage is discarded or published."""
        what = f"what was left of pushes below {prefix!r}"
        if prefix.startswith(self._keys.prefix):
            below = prefix[len(self._keys.prefix) :]
        elif self._keys.prefix.startswith(prefix):
            below = ""
        else:
            return 0
        keys = (self._keys.stage, self._keys.staged, self._keys.unswept)
        count: int = self._link.run(what, lambda c: c.eval(_DISCARD, 3, *keys, below))
        if not below:
            self._stage = None
        self._sweep(what)
        return count

    def publish(self, prefix: str) -> None:
        """See `Writer`: one script, so that readers see all of the model's new files or none.

        Then the chunks of what was replaced are removed: who still reads them finds them gone.
        """
        what = f"the publication of model {self._keys.name!r}"
        if self._stage is not None:
            keys = self._keys
            self._enlist(what)
            names = (keys.stage, keys.staged, keys.files, keys.manifest, keys.unswept)
            stage = self._stage
            done = self._link.run(
                what, lambda client: client.eval(_PUBLISH, 5, *names, self._owner, stage)
            )
            if not done:
                raise _taken_over(what)
            self._stage = None
            if not self._link.run(what, lambda client: client.exists(keys.files)):
                self._link.run(what, lambda client: client.srem(MODELS, keys.name))
            # Again, should another writer's push of all its files have crossed our last deletion.
            if self._link.run(what, lambda client: client.exists(keys.files)):
                self._enlist(what)
        self._sweep(what)

    def close(self) -> None:
        """See `Writer`."""
        self._link.close()

    def run_owned(self, script: str, key: str, what: str, *values: str | int) -> Any:
        """Run a script on the stage and `key`, if this writer still owns the stage.

        Raises `ObjectChanged` if it does not.
        """
        keys = (self._keys.stage, key)
        answer = self._link.run(what, lambda c: c.eval(script, 2, *keys, self._owner, *values))
        if not answer:
            raise _taken_over(what)
        return answer

    def put_chunk(self, stage: str, data: memoryview, digest: str, what: str) -> bool:
        """Have the chunk in the store; False if it was there."""
        name = chunk_key(stage, digest)
        parts = self._keys.parts(stage)
        self.run_owned(_REGISTER, parts, what, name)
        if self._link.run(what, lambda client: client.strlen(name)) == len(data):
            return False
        self._link.run(what, lambda client: client.set(name, data))
        self._check_chunk(name, data, what)
        try:
            self.run_owned(_REGISTER, parts, what, name)
        except ObjectChanged:
            # Published or discarded meanwhile. What nobody has in a list, nobody would remove.
            if not self._link.run(what, lambda client: client.sismember(parts, name)):
                self._link.run(what, lambda client: client.unlink(name))
            raise
        return True

    def _check_chunk(self, name: str, data: memoryview, what: str) -> None:
        """Raise unless the server gives back what it was given.

        Redis checks nothing by itself. A checksum made by a script there costs 4.1 s of the
        server's one thread per GB, reading back 0.3 s.
        """
        found = bytearray(len(data))
        try:
            pieces = [Piece(name, 0, len(data))]
            self._link.read_into(pieces, memoryview(found), None, what)
        except (ValueMissing, CorruptData) as error:
            raise StoreUnavailable(f"{what} did not stay: is another push at work?") from error
        if found != data:
            self._link.run(what, lambda client: client.unlink(name))
            raise StoreUnavailable(f"{what} arrived damaged and was removed: send it again")

    def put_recipe(self, path: str, stage: str, recipe: Recipe, what: str) -> Entry:
        """Name the recipe in the stage, once all its chunks are there."""
        etag = recipe.etag(stage)
        expected = {
            chunk_key(stage, digest): recipe.length(index)
            for index, digest in enumerate(recipe.chunks)
        }
        for names in _batches(list(expected)):
            lengths = self._pipeline("STRLEN", names, what)
            for name, length in zip(names, lengths, strict=True):
                if length != expected[name]:
                    raise CorruptData(
                        f"{what} has lost a chunk: set the server's maxmemory-policy to noeviction,"
                        " and push again"
                    )
        name = recipe_key(etag)
        self.run_owned(_REGISTER, self._keys.parts(stage), what, name)
        self._link.run(what, lambda client: client.set(name, recipe.encode()))
        raw = self.run_owned(_COMMIT, self._keys.staged, what, path, recipe.size, etag)
        return Entry.decode(raw, what)

    def _enlist(self, what: str) -> None:
        """Before it is published, so that no model can be missing from the list."""
        self._link.run(what, lambda client: client.sadd(MODELS, self._keys.name))

    def _begin(self, key: str, size: int) -> RedisUpload:
        what = self._what(key)
        stage = self._take(what)
        self.run_owned(_BEGIN, self._keys.staged, what, self._path(key))
        return RedisUpload(self, key, self._path(key), stage, size)

    def _take(self, what: str) -> str:
        """Become the owner of the model's stage, at the first write; its id."""
        with self._lock:
            if self._stage is None:
                names = (self._keys.stage, self._keys.staged)
                fresh = secrets.token_hex(8)
                raw: bytes = self._link.run(
                    what, lambda client: client.eval(_TAKE, 2, *names, self._owner, fresh)
                )
                self._stage = raw.decode()
            return self._stage

    def _sweep(self, what: str) -> None:
        """Remove every chunk and recipe of ended stages that no name leads to any more."""
        keys = (self._keys.unswept, self._keys.files)
        raw, values = self._link.run(what, lambda client: client.eval(_SURVEY, 2, *keys))
        unswept = {stage.decode(): count for stage, count in zip(raw[::2], raw[1::2], strict=True)}
        etags = [Entry.decode(value, what).etag for value in values] if unswept else []
        for stage, count in unswept.items():
            self._sweep_stage(stage, [etag for etag in etags if stage_of(etag) == stage], what)
            self._swept(stage, count, what)

    def _swept(self, stage: str, count: bytes, what: str) -> None:
        key = self._keys.unswept
        self._link.run(what, lambda client: client.eval(_SWEPT, 1, key, stage, count))

    def _sweep_stage(self, stage: str, etags: Sequence[str], what: str) -> None:
        """Remove what was made in an ended stage, but for what these versions need."""
        parts, run = self._keys.parts(stage), self._link.run
        members: set[bytes] = run(what, lambda client: client.smembers(parts))
        live: set[str] = set()
        recipes = self._pipeline("GET", [recipe_key(etag) for etag in etags], what)
        for etag, raw in zip(etags, recipes, strict=True):
            if raw is not None:
                live |= Recipe.decode(raw, what).keys(etag)
        dead = {raw.decode() for raw in members} - live
        # Recipes first ("r" sorts behind "c"): who misses a chunk looks for its recipe to tell why.
        for names in _batches(sorted(dead, reverse=True)):
            self._pipeline("UNLINK", names, what)
            self._forget(parts, names, what)

    def _forget(self, parts: str, names: Sequence[str], what: str) -> None:
        self._link.run(what, lambda client: client.srem(parts, *names))

    def _pipeline(self, command: str, names: Iterable[str], what: str) -> list[Any]:
        def run(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.execute_command(command, name)
            answers: list[Any] = pipeline.execute()
            return answers

        return self._link.run(what, run)

    def _path(self, key: str) -> str:
        if not key.startswith(self._keys.prefix):
            raise InternalError(f"the key {key!r} is not of the model {self._keys.name!r}")
        return key[len(self._keys.prefix) :]

    def _what(self, key: str) -> str:
        return f"the object {key[:200]!r} at {self._link.address}"


class RedisUpload:
    """Obeys `fusefs.store.base.Upload`."""

    part_bytes = CHUNK_BYTES

    def __init__(self, writer: RedisWriter, key: str, path: str, stage: str, size: int) -> None:
        self._writer = writer
        self._key = key
        self._path = path
        self._stage = stage
        self._size = size
        # The mutable state of RedisUpload: the parts that are there. INVARIANT: an index is in it
        # only after the store has its chunk.
        self._digests: dict[int, str] = {}

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        digest = hashlib.sha256(data).hexdigest()
        fresh = self._writer.put_chunk(self._stage, data, digest, self._what())
        self._digests[index] = digest
        return fresh

    def commit(self) -> ObjectMeta:
        """See `Upload`."""
        count = -(-self._size // CHUNK_BYTES)
        if sorted(self._digests) != list(range(count)):
            raise FusefsError(f"{self._what()} has {len(self._digests)} of its {count} parts")
        chunks = tuple(self._digests[index] for index in range(count))
        recipe = Recipe(self._size, CHUNK_BYTES, chunks)
        entry = self._writer.put_recipe(self._path, self._stage, recipe, self._what())
        return entry.meta(self._key)

    def _what(self) -> str:
        return f"the upload of {self._key[:200]!r}"


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _BATCH_KEYS):
        yield names[first : first + _BATCH_KEYS]


def _taken_over(what: str) -> ObjectChanged:
    return ObjectChanged(
        f"{what} was taken over: another push of this model began, ended or discarded it; run one"
        " at a time"
    )
