"""What is fuzzed: functions of bytes, each with the seeds that it grows from.

A target returns whatever the input is; it raises if fusefs breaks a promise about such input: an
exception that its callers do not expect, a value beyond its bounds, a secret in a message. The one
idea: hypothesis and atheris run the same functions, so what one finds the other repeats.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fusefs.cli.options import parse_options, split_options
from fusefs.cli.resolve import resolve_config
from fusefs.engine import jobs
from fusefs.engine.worker import _index_parts
from fusefs.errors import ConfigError, CorruptData
from fusefs.hints import wishes
from fusefs.objects import ListPage, ObjectId, ObjectMeta
from fusefs.policy.companions import companions_of
from fusefs.policy.kinds import kind_of
from fusefs.policy.shards import group_of, natural_key, shard_order
from fusefs.store.base import Source
from fusefs.store.redis_layout import Entry, Recipe
from fusefs.store.redis_sglang import _describe
from fusefs.store.source import parse_source
from fusefs.transfer.manifest import decode_journal, decode_manifest
from fusefs.tree.names import name_of, segment_of
from loaderhint import protocol
from loaderhint.header import HeaderError, parse_header, read_length
from tests.fuzz.peer import hints, verb_seeds, verbs
from tests.fuzz.peer import seeds as peer_seeds
from tests.fuzz.redis_store import model, model_seeds, wire, wire_seeds
from tests.fuzz.stores import azure, azure_seeds, gcs, gcs_seeds, s3, s3_seeds

MESSAGE = jobs.MESSAGE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Target:
    """One of them."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def header(data: bytes) -> None:
    """The head of a safetensors file: believed wholly or not at all."""
    with suppress(HeaderError):
        length = read_length(data[:8])
        size = len(data) + 64
        found = parse_header(data[8 : 8 + length], size)
        at = found.data_start
        for tensor in found.tensors:
            assert tensor.start == at <= tensor.stop <= size
            at = tensor.stop
        assert at == size and found.data_start == 8 + len(data[8 : 8 + length])


def _header_seeds() -> Iterable[bytes]:
    texts: list[object] = [
        {},
        {"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}},
        {"__metadata__": {"format": "pt"},
         "w": {"dtype": "I8", "shape": [64], "data_offsets": [0, 64]}},
        {"a": {"dtype": "F4", "shape": [2, 32], "data_offsets": [0, 32]},
         "b": {"dtype": "U8", "shape": [32], "data_offsets": [32, 64]}},
    ]  # fmt: skip
    for value in texts:
        text = json.dumps(value).encode()
        yield len(text).to_bytes(8, "little") + text
    yield (1 << 40).to_bytes(8, "little") + b"{"
    yield (9).to_bytes(8, "little") + b'{"a":' * 1000


def frames(data: bytes) -> None:
    """The framing of hints: however the bytes are cut, the same messages, or the same end."""
    limit, step = 256, 1 + (data[0] if data else 0) % 16
    assert _messages([data], limit) == _messages(
        [data[at : at + step] for at in range(0, len(data), step)], limit
    )


def _messages(pieces: Iterable[bytes], limit: int) -> tuple[list[object], bool]:
    found = protocol.Frames(limit)
    kept: list[object] = []
    try:
        for piece in pieces:
            for message in found.feed(piece):
                kept.append(json.dumps(message, sort_keys=True))
            assert len(found._rest) <= max(limit + protocol.LENGTH_BYTES, len(piece))
    except protocol.ProtocolError:
        return kept, True
    return kept, False


def requests(data: bytes) -> None:
    """The operations of hints: a wish within its bounds, or an error with a name."""
    try:
        message = protocol.decode(data)
    except protocol.ProtocolError:
        return
    with suppress(wishes.Refused):
        plan = wishes.plan_wish(message)
        assert 0 < len(plan.name) <= protocol.PLAN_NAME_MAX
        assert 0 < len(plan.files) <= protocol.FILES_MAX
        assert all(start <= stop for file in plan.files for start, stop in file.extents or ())
    with suppress(wishes.Refused):
        wait = wishes.wait_wish(message)
        assert 0 <= wait.start <= wait.stop and 0 <= wait.timeout_s <= wishes.WAIT_TIMEOUT_MAX_S
    with suppress(wishes.Refused):
        assert wishes.every_bytes(message) > 0
    with suppress(wishes.Refused):
        assert all(type(at) is int for at in wishes.released_slots(message))
    wishes.speaks_our_version(message)


def _request_seeds() -> Iterable[bytes]:
    file = {"inode": 77, "etag": "v1", "extents": [[0, 10], [10, 20]]}
    for message in (
        {"id": 1, "op": "plan", "plan": "p", "files": [file],
         "group": {"id": "g", "rank": 0, "size": 2}},
        {"id": 1, "op": "plan", "plan": "p", "mode": "slots", "files": [file],
         "window_bytes": 1 << 20, "order": "offset", "priority": "warm", "append": True},
        {"id": 2, "op": "wait", "plan": "p", "inode": 77, "start": 0, "stop": 9, "timeout_ms": 5},
        {"id": 3, "op": "release", "plan": "p", "slots": [0, 4096], "every_bytes": 3},
        {"id": 4, "op": "hello", "protocol": [1], "client": "x"},
    ):  # fmt: skip
        yield json.dumps(message).encode()


def toml(data: bytes) -> None:
    """A settings file: settings, or one sentence."""
    path = _scratch() / "fusefs.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        resolve_config(file=path, environ={}).to_json_dict()


def options(data: bytes) -> None:
    """`-o`, as mount(8) and people give it."""
    text = data.decode(errors="surrogateescape")
    assert all(split_options(text))
    for by_mount8 in (False, True):
        with suppress(ConfigError):
            overrides = list(parse_options(text, by_mount8=by_mount8))
            resolve_config(file=None, environ={}, overrides=overrides, default_file=_absent())


def environment(data: bytes) -> None:
    """FUSEFS_… variables, one a line."""
    lines = data.decode(errors="surrogateescape").split("\n")
    environ = dict(line.split("=", 1) for line in lines if "=" in line)
    with suppress(ConfigError):
        resolve_config(file=None, environ=environ, default_file=_absent())


_PASSWORD = re.compile(r"[^/?#@:]*:([^/?#@]{4,})@")
"""Where people put one: right behind the "://"."""


def source(data: bytes) -> None:
    """A SOURCE: a place, or one sentence that repeats no password."""
    text = data.decode(errors="surrogateescape")
    found = _parsed(text)
    if isinstance(found, str):
        assert "\n" not in found
        scheme, separator, rest = text.partition("://")
        secret = _PASSWORD.match(rest)
        if secret is not None:
            other = f"{scheme}{separator}{rest[: secret.start(1)]}hunter2x{rest[secret.end(1) :]}"
            assert "hunter2x" not in str(_parsed(other))
        return
    assert found.prefix == "" or (found.prefix.endswith("/") and "//" not in found.prefix)
    assert not {"", ".", ".."} & set(found.prefix.split("/")[:-1])
    if found.scheme in ("s3", "gs", "file"):
        assert parse_source(found.text) == found, "what is shown is not what was said"


def _parsed(text: str) -> Source | str:
    """The place, or the sentence that says why it is none."""
    try:
        return parse_source(text)
    except ConfigError as error:
        return str(error)


def redis(data: bytes) -> None:
    """What lies in Redis: entries, recipes, blobs of SGLang."""
    with suppress(CorruptData):
        entry = Entry.decode(data, "it")
        assert jobs.meta_from_wire(jobs.meta_to_wire(entry.meta("k"))) == entry.meta("k")
    with suppress(CorruptData):
        recipe = Recipe.decode(data, "it")
        assert recipe.size >= 0 and len(recipe.keys("stage-x")) <= recipe.count + 1
        assert sum(recipe.length(i) for i in range(recipe.count)) == recipe.size
        assert recipe.etag("stage").startswith("stage-")
    with suppress(CorruptData):
        info = _describe("key", len(data), data[:1024])
        assert 0 <= info.start <= info.stop <= len(data)


def _redis_seeds() -> Iterable[bytes]:
    yield Entry(5, 10**18, "stage-etag").encode().encode()
    yield Recipe(10, 4, ("a" * 64, "b" * 64, "c" * 64)).encode().encode()
    text = b'{"tensor_bytes":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    yield len(text).to_bytes(8, "little") + text + bytes(8)
    yield b'{"size":' + b"[" * 5000


def manifest(data: bytes) -> None:
    """What push left in a bucket: names that a mount could show, or `CorruptData`."""
    with suppress(CorruptData):
        for row in decode_manifest(data, "it"):
            _is_inside(row.name)
    with suppress(CorruptData):
        journal = decode_journal(data, "it")
        for name in (*journal.remove, *(row.name for row in journal.files)):
            _is_inside(name)


def _is_inside(name: str) -> None:
    assert not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _manifest_seeds() -> Iterable[bytes]:
    files = [{"name": "a/b", "size": 3, "sha256": "0" * 64}]
    yield json.dumps({"v": 1, "files": files}).encode()
    yield json.dumps({"v": 1, "files": files, "before": {"a": "e"}, "remove": ["c"]}).encode()


def names(data: bytes) -> None:
    """Keys and file names: to and fro without loss, or hidden; shards and companions, too."""
    text = data.decode("utf-8", "surrogateescape")
    name = name_of(text)
    assert name is None or segment_of(name) == text
    assert (segment := segment_of(data)) is None or name_of(segment) == data
    parts = text[:400].split("\n")
    for part in parts:
        kind_of(part)
        group_of(part)
    sorted(parts, key=natural_key)
    shard_order(parts[0], parts, parts[1:])
    metas = [ObjectMeta(ObjectId(part, "e"), len(part), 0) for part in parts]
    companions_of(parts[0], metas, 4096, 16)


def index(data: bytes) -> None:
    """A model's index: names of files in messages of bounded length, or `CorruptData`."""
    with suppress(CorruptData):
        for part in _index_parts(data):
            assert len(jobs.encode({"id": 1, "part": part})) <= MESSAGE
            assert all(len(name) <= 255 for name in part)


def _index_seeds() -> Iterable[bytes]:
    shards = {f"w{i}": f"model-{i:05d}-of-00003.safetensors" for i in range(1, 4)}
    yield json.dumps({"metadata": {}, "weight_map": shards}).encode()
    yield json.dumps(
        {"weight_map": {str(i): f"{i:03d}" + "\U0001f600" * 252 for i in range(99)}}
    ).encode()


def listing(data: bytes) -> None:
    """A page of names of any length, in messages of bounded length, or `CorruptData`."""
    rows = data.decode("utf-8", "surrogateescape").split("\n")
    repeat = 1 + (data[0] if data else 0) * 4
    metas = tuple(ObjectMeta(ObjectId(row * repeat, row), len(row), 0) for row in rows)
    page = ListPage(metas, tuple(f"{row}/" for row in rows), rows[0])
    with suppress(CorruptData):
        parts = jobs.page_to_parts(page)
        messages = [jobs.encode({"id": 1, "part": part}) for part in parts]
        assert all(len(message) <= MESSAGE for message in messages)
        again = [jobs.decode(message)["part"] for message in messages]
        assert jobs.page_from_parts(again, rows[0]) == page


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fusefs-fuzz-"))


def _absent() -> Path:
    return Path("/nonexistent/fusefs.toml")


def _of(*seeds: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: seeds


TARGETS: dict[str, Target] = {
    "header": Target(header, _header_seeds),
    "frames": Target(
        frames, _of(protocol.encode({"id": 1, "op": "x"}), b"\xff\xff\xff\xff", b"\2\0\0\0[]" * 9)
    ),
    "requests": Target(requests, _request_seeds),
    "hints": Target(hints, peer_seeds),
    "verbs": Target(verbs, verb_seeds),
    "toml": Target(
        toml,
        _of(b'[engine]\nmemory = "512M"\nread_deadline_s = 1.5', b"[mount]\numask = 0o22", b"a=1"),
    ),
    "options": Target(
        options, _of(b"uid=0,gid=root,umask=022,allow_other", b"rw,engine.memory=1G,x-y", b"a\\,b")
    ),
    "environment": Target(
        environment, _of(b"FUSEFS_ENGINE_MEMORY=1G\nFUSEFS_S3_ENDPOINT_URL=http://[::1]:80", b"A=b")
    ),
    "source": Target(
        source,
        _of(
            b"s3://bucket/a/b", b"s3://key:secret@bucket", b"file:///a/../b", b"gs://b",
            b"az://account/container/p", b"az://host:99/c", b"redis://h:1/2?model=a/b",
            b"rediss://u:password@h?model=x", b"s3://arn:aws:s3:r:123456789012:accesspoint/a/b",
        ),
    ),
    "redis": Target(redis, _redis_seeds),
    "manifest": Target(manifest, _manifest_seeds),
    "names": Target(names, _of(b"model-00001-of-00002.safetensors\na", b"a" * 300, b"\xfc\n..")),
    "index": Target(index, _index_seeds),
    "listing": Target(listing, _of(b"a\nb\nc/d", b"\xff" * 200, "\U0001f600".encode() * 60)),
    "redis-wire": Target(wire, wire_seeds),
    "redis-model": Target(model, model_seeds),
    "s3": Target(s3, s3_seeds),
    "gcs": Target(gcs, gcs_seeds),
    "azure": Target(azure, azure_seeds),
}  # fmt: skip
