"""What lies in the bucket: folders of made-up models and files, uploaded once, kept in memory too.

Each scenario names the folder it loads; only those asked for are made. One idea: the originals stay
in memory (tmpfs), where nginx serves them from and where every contestant's bytes are compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.weights import write_checkpoint, write_weights
from tests.harness.model import make_model
from tests.harness.weed import Weed, open_weed

BUCKET = "models"
STATIC_SUFFIXES = ("safetensors", "bin", "json")
"""What nginx serves; everything else, and every listing, is the S3 server's."""
UPLOADS = 16
"""At once: 10,000 small objects one by one take minutes."""
SINGLE_PUT_BYTES_MAX = 8 << 20
CONFIGURATION_SHARDS = 2
CONFIGURATION_SHARD_BYTES = 1 << 20

MODEL = "model"
LLAMA = "llama"
CHECKPOINT = "checkpoint"
CONFIGURATION = "configuration"
OBJECTS = "objects"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is made: shards of the model, bytes in each of its files, objects to list."""

    shards: int
    shard_bytes: int
    objects: int


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object as the listing tells it."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the bucket: its key prefix, its files that are loaded, and where they came from.

    `objects` are in the order of loading; `originals` is on tmpfs.
    """

    prefix: str
    objects: tuple[RemoteObject, ...]
    originals: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names within the folder."""
        return tuple(entry.key.removeprefix(self.prefix) for entry in self.objects)

    @property
    def size_bytes(self) -> int:
        """Size of all objects together."""
        return sum(entry.size for entry in self.objects)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The S3 server, what lies in it, and the same below `static`; `etags` by "/bucket/key"."""

    weed: Weed
    static: Path
    folders: dict[str, Folder]
    etags: dict[str, str]


def _make_model(directory: Path, sizes: Sizes) -> tuple[str, ...]:
    return write_weights(directory, sizes.shards, sizes.shard_bytes)


def _make_llama(directory: Path, sizes: Sizes) -> tuple[str, ...]:
    """Half of a shard twice: a model that transformers loads, sharded, and a few 100 MB."""
    model = make_model(directory, 2, sizes.shard_bytes // 2)
    return tuple(path.name for path in model.shards)


def _make_checkpoint(directory: Path, sizes: Sizes) -> tuple[str, ...]:
    return (write_checkpoint(directory, sizes.shard_bytes),)


def _make_configuration(directory: Path, sizes: Sizes) -> tuple[str, ...]:
    """Only what an engine reads before the weights: configuration, index, tokenizer."""
    model = make_model(directory, CONFIGURATION_SHARDS, CONFIGURATION_SHARD_BYTES)
    for shard in model.shards:
        shard.unlink()
    return tuple(sorted(path.name for path in directory.iterdir()))


def _make_objects(directory: Path, sizes: Sizes) -> tuple[str, ...]:
    """Small objects, of which none is loaded; their sizes differ, so that a wrong stat shows."""
    directory.mkdir(parents=True)
    for number in range(sizes.objects):
        (directory / f"object-{number:06d}.txt").write_bytes(b"x" * (number % 97 + 1))
    return ()


FOLDERS: dict[str, Callable[[Path, Sizes], tuple[str, ...]]] = {
    MODEL: _make_model,
    LLAMA: _make_llama,
    CHECKPOINT: _make_checkpoint,
    CONFIGURATION: _make_configuration,
    OBJECTS: _make_objects,
}
"""By the name of the folder: writes it and returns which files are loaded, in order."""


@contextmanager
def open_bucket(
    directory: Path, memory: Path, wanted: Collection[str], sizes: Sizes
) -> Iterator[Bucket]:
    """Run a server with the folders wanted, until the block ends. Raises `WeedFailed`."""
    static = memory / "static"
    with open_weed(directory / "weed") as weed:
        client = weed.client()
        client.create_bucket(Bucket=BUCKET)
        folders: dict[str, Folder] = {}
        etags: dict[str, str] = {}
        for name in wanted:
            originals = static / BUCKET / name
            loaded = FOLDERS[name](originals, sizes)
            _upload(client, originals, f"{name}/")
            listed = _listed(client, originals, f"{name}/")
            etags |= {f"/{BUCKET}/{entry.key}": entry.etag for entry in listed.values()}
            objects = tuple(listed[file] for file in loaded)
            folders[name] = Folder(f"{name}/", objects, originals)
        # The upload's dirty pages would otherwise be written out during the first round.
        os.sync()
        yield Bucket(weed, static, folders, etags)


def _upload(client: Any, originals: Path, prefix: str) -> None:
    """Put every file; the large ones in parts, as everybody does."""

    def put(path: Path) -> None:
        key = f"{prefix}{path.name}"
        if path.stat().st_size > SINGLE_PUT_BYTES_MAX:
            client.upload_file(str(path), BUCKET, key)
        else:
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    with ThreadPoolExecutor(UPLOADS) as threads:
        for _ in threads.map(put, sorted(originals.iterdir())):
            pass


def _listed(client: Any, originals: Path, prefix: str) -> dict[str, RemoteObject]:
    """Return what the server lists below the prefix, by file name."""
    listed: dict[str, RemoteObject] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for entry in page["Contents"]:
            name = entry["Key"].removeprefix(prefix)
            listed[name] = RemoteObject(entry["Key"], entry["Size"], entry["ETag"])
            # nginx must tell the same Last-Modified as the listing: some clients compare them.
            modified = entry["LastModified"].timestamp()
            os.utime(originals / name, (modified, modified))
    return listed
