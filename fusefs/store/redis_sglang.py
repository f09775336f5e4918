"""What SGLang's RemoteModelLoader left in Redis, as files that any loader reads.

SGLang writes one small safetensors blob per tensor and rank, `{model}/keys/rank_{r}/{tensor}`, and
text files, `{model}/files/{name}`; no manifest, no version. The one idea: the tensors of a rank are
shown as one safetensors file, whose header is made here and whose data are the blobs' own bytes, so
that nothing is decoded. The identity is a digest over what can be seen cheaply: keys, sizes, heads.
It pins nothing: a tensor that is overwritten by one of the same shape looks the same.

The layout is that of SGLang 0.5, below python/sglang/srt: connector/redis.py,
connector/serde/safe_serde.py, and RemoteModelLoader in model_loader/loader.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusefs.errors import CorruptData, ObjectChanged
from fusefs.objects import Extent
from fusefs.store.redis_layout import Entry
from fusefs.store.redis_link import Link, Piece, ValueMissing
from loaderhint.header import (
    DTYPE_BITS,
    LENGTH_BYTES,
    HeaderError,
    TensorInfo,
    parse_header,
    read_length,
)

_ETAG = "sglang-"

_TENSOR = "tensor_bytes"
"""What SGLang's serialiser calls the one tensor of a blob."""

_HEAD_BYTES = 1024
"""A blob's head is 72 to 104 bytes; a tensor of thirty dimensions still fits in this."""

_TEXT_HEAD_BYTES = 65536
"""What is digested of a file: all of an index or configuration, the beginning of a tokenizer."""

_SCAN_COUNT = 1000
"""Keys looked at per request of a scan: below a millisecond of the server."""

_BATCH_KEYS = 1000

_FRESH_S = 10.0
"""How long what was found is believed. Finding it scans the server's whole key space."""

_KEY = re.compile(r"keys/rank_(\d+)/(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Part:
    """`[start, start + size)` of a file are the bytes from `offset` on of the value of `key`."""

    start: int
    size: int
    key: str
    offset: int


@dataclass(frozen=True, slots=True)
class _File:
    """One file: `head`, then the parts, without a hole."""

    entry: Entry
    head: bytes
    parts: tuple[_Part, ...]


class SglangModel:
    """The files of one model. Blocking and thread-safe; raises like `Store`."""

    def __init__(self, link: Link, model: str) -> None:
        self._link = link
        self._model = model
        self._lock = threading.Lock()
        # The mutable state of SglangModel: what was found, and when.
        self._files: dict[str, _File] = {}
        self._found_s = float("-inf")

    @staticmethod
    def owns(etag: str) -> bool:
        """Whether this identity was made here."""
        return etag.startswith(_ETAG)

    def entries(self) -> dict[str, Entry]:
        """The files by path; empty if SGLang wrote no such model.

        Raises `CorruptData` if a value is not what SGLang writes: half of a model is no model.
        """
        return {path: file.entry for path, file in self._look().items()}

    def read_into(
        self,
        path: str,
        etag: str,
        extent: Extent,
        buffer: memoryview,
        landed: Callable[[int], None] | None,
    ) -> None:
        """As `Store.read_into`, for the file at `path`."""
        what = f"the file {path!r} of SGLang's model {self._model!r}"
        file = self._files.get(path)
        if file is None or file.entry.etag != etag:
            file = self._look(fresh=True).get(path)
        if file is None or file.entry.etag != etag:
            raise ObjectChanged(f"{what} was overwritten or deleted")
        if extent.stop > file.entry.size:
            raise CorruptData(f"{what} has {file.entry.size} bytes, and none beyond")
        head = file.head[extent.start : extent.stop]
        buffer[: len(head)] = head
        if len(head) == len(buffer):
            if landed is not None:
                landed(len(head))
            return

        def landed_behind(count: int) -> None:
            if landed is not None:
                landed(len(head) + count)

        pieces = _pieces(file, extent)
        try:
            self._link.read_into(pieces, buffer[len(head) :], landed_behind, what)
        except ValueMissing as missing:
            raise ObjectChanged(f"{what} was deleted, or partly so") from missing

    def _look(self, fresh: bool = False) -> dict[str, _File]:
        with self._lock:
            if fresh or time.monotonic() - self._found_s > _FRESH_S:
                self._files = self._find()
                self._found_s = time.monotonic()
            return self._files

    def _find(self) -> dict[str, _File]:
        what = f"SGLang's model {self._model!r}"
        prefix = f"{self._model}/"
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        found: list[bytes] = self._link.run(
            what, lambda client: list(client.scan_iter(match=pattern, count=_SCAN_COUNT))
        )
        ranks: dict[int, list[tuple[str, str]]] = {}
        texts: list[tuple[str, str]] = []
        for key in sorted({raw.decode(errors="surrogateescape") for raw in found}):
            rest = key[len(prefix) :]
            tensor = _KEY.fullmatch(rest)
            if tensor:
                ranks.setdefault(int(tensor[1]), []).append((tensor[2], key))
            elif rest.startswith("files/") and rest != "files/":
                texts.append((rest[len("files/") :], key))
        files = self._text_files(texts, what)
        for rank, tensors in ranks.items():
            files[f"model-rank-{rank}-part-0.safetensors"] = self._rank_file(tensors, what)
        return files

    def _text_files(self, texts: list[tuple[str, str]], what: str) -> dict[str, _File]:
        files = {}
        looks = self._heads([key for _, key in texts], _TEXT_HEAD_BYTES, what)
        for (path, key), (size, head) in zip(texts, looks, strict=True):
            digest = hashlib.sha256(f"{key}\n{size}\n".encode(errors="surrogateescape") + head)
            parts = (_Part(0, size, key, 0),) if size else ()
            files[path] = _File(Entry(size, 0, _etag(digest.hexdigest())), b"", parts)
        return files

    def _rank_file(self, tensors: list[tuple[str, str]], what: str) -> _File:
        looks = self._heads([key for _, key in tensors], _HEAD_BYTES, what)
        described = []
        digest = hashlib.sha256()
        for (name, key), (size, head) in zip(tensors, looks, strict=True):
            described.append((name, key, _describe(key, size, head)))
            digest.update(f"{key}\n{size}\n".encode(errors="surrogateescape") + head[:256])
        # Wide ones first, as safetensors writes, so that every tensor is aligned.
        described.sort(key=lambda item: (-DTYPE_BITS[item[2].dtype], item[2].dtype, item[0]))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, _, info in described:
            size = info.stop - info.start
            header[name] = {
                "dtype": info.dtype,
                "shape": info.shape,
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(LENGTH_BYTES, "little") + text
        parts = []
        start = len(head)
        for _, key, info in described:
            size = info.stop - info.start
            if size:
                parts.append(_Part(start, size, key, info.start))
                start += size
        return _File(Entry(start, 0, _etag(digest.hexdigest())), head, tuple(parts))

    def _heads(self, keys: list[str], size: int, what: str) -> list[tuple[int, bytes]]:
        """Length and first bytes of each value."""

        def run(client: Any) -> list[Any]:
            answers: list[Any] = []
            for first in range(0, len(keys), _BATCH_KEYS):
                pipeline = client.pipeline(transaction=False)
                for key in keys[first : first + _BATCH_KEYS]:
                    raw = key.encode(errors="surrogateescape")
                    pipeline.strlen(raw)
                    pipeline.getrange(raw, 0, size - 1)
                answers += pipeline.execute()
            return answers

        answers = self._link.run(what, run)
        return list(zip(answers[::2], answers[1::2], strict=True))


def _describe(key: str, size: int, head: bytes) -> TensorInfo:
    """The one tensor of a blob. Raises `CorruptData` unless it is one."""
    shown = repr(key[:200])
    try:
        stop = LENGTH_BYTES + read_length(head[:LENGTH_BYTES])
        # A head that is longer than what we have of it is cut, and then no JSON.
        tensors = parse_header(head[LENGTH_BYTES:stop], size).tensors
    except HeaderError as error:
        raise CorruptData(f"the value of {shown} is not what SGLang writes: {error}") from error
    if [tensor.name for tensor in tensors] != [_TENSOR]:
        raise CorruptData(f"the value of {shown} is not what SGLang writes: one {_TENSOR!r}")
    return tensors[0]


def _pieces(file: _File, extent: Extent) -> list[Piece]:
    pieces = []
    at = max(extent.start, len(file.head))
    index = bisect_right(file.parts, at, key=lambda part: part.start) - 1
    while at < extent.stop:
        part = file.parts[index]
        stop = min(extent.stop, part.start + part.size)
        shift = part.offset - part.start
        pieces.append(Piece(part.key, at + shift, stop + shift))
        at = stop
        index += 1
    return pieces


def _etag(digest: str) -> str:
    return f"{_ETAG}{digest[:32]}"
