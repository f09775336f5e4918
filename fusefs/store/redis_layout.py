"""How a model lies in Redis: the names of keys and the values that are not chunks.

Pure: asks no server. `docs/stores/redis.md` describes the same for those who write it themselves.
The one idea: a chunk is named by its own SHA-256 and is never written twice, and a version of an
object is a *recipe*, the list of its chunks. What readers see is one hash, path -> version, which
changes in one step; so a reader holds bytes of one version or finds a chunk gone.

Keys that must change together carry the hash tag `{/NAME}`, so a cluster keeps them in one slot;
chunks carry none, so they spread over all nodes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fusefs.errors import CorruptData
from fusefs.objects import ObjectId, ObjectMeta

CHUNK_BYTES = (4 << 20) - 64
"""A range of 8 MiB asks two or three nodes of a cluster at once; smaller chunks are more keys and
read no faster, larger ones spread less. A value has a header of 18 bytes, and a server's jemalloc
has nothing between 4 and 5 MiB: 64 bytes less, and 1 GB takes 1.002 GB of its memory, not 1.25."""

MODELS = "fusefs:models"
"""A set: the names of all models that were published."""


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """The keys of the model `name`; "" is the model without a name, whose files are at the root."""

    name: str

    @property
    def prefix(self) -> str:
        """What the store's keys of its objects begin with."""
        return f"{self.name}/" if self.name else ""

    @property
    def _tag(self) -> str:
        return f"fusefs:{{/{self.name}}}"

    @property
    def manifest(self) -> str:
        """A hash: `state` READY, `generation` (a count of publications), `changed_ms`."""
        return f"{self._tag}:manifest"

    @property
    def files(self) -> str:
        """A hash: path below the model -> `Entry`."""
        return f"{self._tag}:files"

    @property
    def stage(self) -> str:
        """A hash: `id` of the stage that is being written, `owner` who writes it."""
        return f"{self._tag}:stage"

    @property
    def staged(self) -> str:
        """A hash: path -> `Entry` committed, "" begun, "-" to be deleted."""
        return f"{self._tag}:staged"

    @property
    def unswept(self) -> str:
        """A hash: stages that ended or lost a version since they were swept -> how often."""
        return f"{self._tag}:unswept"

    def parts(self, stage: str) -> str:
        """A set: the names of all chunks and recipes that were made in `stage`."""
        return f"{self._tag}:parts:{stage}"


def chunk_key(stage: str, digest: str) -> str:
    """Where the bytes with this SHA-256 lie, for objects that were written in `stage`."""
    return f"fusefs:chunk:{stage}:{digest}"


def recipe_key(etag: str) -> str:
    """Where the `Recipe` of a version lies."""
    return f"fusefs:recipe:{etag}"


def stage_of(etag: str) -> str:
    """The stage that a version was written in."""
    return etag.partition("-")[0]


def _is_size(value: object) -> bool:
    """Whether JSON from strangers says a number of bytes. `type`, since True is an int."""
    return type(value) is int and value >= 0


def _is_name(value: object) -> bool:
    """Whether it can be a part of a key: text, and no half of a surrogate pair."""
    return isinstance(value, str) and value.isascii()


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of one file."""

    size: int
    mtime_ns: int
    etag: str

    def encode(self) -> str:
        """As it lies in the hash."""
        return json.dumps({"size": self.size, "mtime_ns": self.mtime_ns, "etag": self.etag})

    @classmethod
    def decode(cls, raw: bytes, what: str) -> Entry:
        """Undo `encode`. Raises `CorruptData`."""
        try:
            values = json.loads(raw)
            size, mtime_ns, etag = values["size"], values["mtime_ns"], values["etag"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptData(f"{what} has an entry that is not ours; push it again") from error
        if not _is_size(size) or type(mtime_ns) is not int or not _is_name(etag):
            raise CorruptData(f"{what} has an entry with wrong types; push it again")
        return cls(size, mtime_ns, etag)

    def meta(self, key: str) -> ObjectMeta:
        """For the object whose full key is `key`."""
        return ObjectMeta(ObjectId(key, self.etag), self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One immutable version: `chunks` are SHA-256 in hex, each of `chunk_bytes` but the last."""

    size: int
    chunk_bytes: int
    chunks: tuple[str, ...]

    def encode(self) -> str:
        """As it lies under its key."""
        return json.dumps(
            {"size": self.size, "chunk_bytes": self.chunk_bytes, "chunks": self.chunks}
        )

    @classmethod
    def decode(cls, raw: bytes, what: str) -> Recipe:
        """Undo `encode`. Raises `CorruptData` if it cannot be followed."""
        try:
            values = json.loads(raw)
            recipe = cls(values["size"], values["chunk_bytes"], tuple(values["chunks"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptData(f"{what} has a recipe that is not ours; push it again") from error
        sizes = _is_size(recipe.size) and _is_size(recipe.chunk_bytes) and recipe.chunk_bytes > 0
        if not sizes or not all(_is_name(chunk) for chunk in recipe.chunks):
            raise CorruptData(f"{what} has a recipe with wrong types; push it again")
        if len(recipe.chunks) != recipe.count:
            raise CorruptData(f"{what} has a recipe with too few or many chunks; push it again")
        return recipe

    @property
    def count(self) -> int:
        """How many chunks there must be."""
        return -(-self.size // self.chunk_bytes)

    def length(self, index: int) -> int:
        """The size of a chunk in bytes."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def etag(self, stage: str) -> str:
        """The identity of this version: where it was written, and a checksum of it all."""
        return f"{stage}-{hashlib.sha256(self.encode().encode()).hexdigest()[:32]}"

    def keys(self, etag: str) -> set[str]:
        """Every key that this version needs, besides its entry."""
        stage = stage_of(etag)
        return {recipe_key(etag)} | {chunk_key(stage, digest) for digest in self.chunks}
