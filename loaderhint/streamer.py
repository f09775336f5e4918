"""Loaders in the shape of others: Run:ai's `SafetensorsStreamer`, and safetensors' `prefetch`.

The one idea: code written for those loads through a mount by changing an import. What a class does
is what `iterate_files` does; only names and order of calls are theirs.

Differences from runai_model_streamer 0.17: paths are files, object storage is what the mount is
for (`s3_credentials` is taken and not used); `owned=False` is allowed and owned all the same.
"""

from __future__ import annotations

import glob
import logging
import os
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from loaderhint.files import SUFFIX, open_files, read_headers
from loaderhint.header import TensorInfo
from loaderhint.plan import Cut, PlanError, plan_parts
from loaderhint.torch import Device, iterate_files

_log = logging.getLogger("loaderhint")

PREFETCH_BYTES_MAX = 4 << 30
"""Loaded by `prefetch` and not taken. safetensors has no bound and was asked for one."""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One tensor of a file, with the names that Run:ai gives."""

    name: str
    shape: list[int]
    dtype: str
    size_bytes: int

    def get_bytesize(self) -> int:
        """Size in bytes."""
        return self.size_bytes


def list_safetensors(path: str, s3_credentials: Any = None) -> list[str]:
    """The `*.safetensors` in a folder; folders below are not looked into."""
    del s3_credentials
    return glob.glob(os.path.join(glob.escape(path), f"*{SUFFIX}"))


class SafetensorsStreamer:
    """Streams tensors in the order they are complete: `stream_files`, then `get_tensors`.

    The mutable state of SafetensorsStreamer is the request, and the loader while it runs.
    """

    def __init__(self) -> None:
        self.files_to_tensors_metadata: dict[int, list[TensorMetadata]] = {}
        self.total_size = 0
        self.device_str: str | None = None
        self._started = 0.0
        self._tensors: Generator[tuple[str, torch.Tensor], None, None] | None = None

    def __enter__(self) -> SafetensorsStreamer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop loading. Tensors stay."""
        if self._tensors is not None:
            self._tensors.close()

    def stream_file(
        self,
        path: str,
        s3_credentials: Any = None,
        device: str | None = "cpu",
        is_distributed: bool = False,
        tensor_names: Collection[str] | None = None,
        owned: bool = True,
    ) -> None:
        """As stream_files, of one file."""
        self.stream_files([path], s3_credentials, device, is_distributed, tensor_names, owned)

    def stream_files(
        self,
        paths: list[str],
        s3_credentials: Any = None,
        device: str | None = "cpu",
        is_distributed: bool = False,
        tensor_names: Collection[str] | None = None,
        owned: bool = True,
    ) -> None:
        """Say what to load; `get_tensors` yields it.

        With `is_distributed`, every rank of the default group calls this alike, and each byte is
        read once. Raises ValueError for names that are not there, OSError, HeaderError.
        """
        del s3_credentials, owned
        if isinstance(tensor_names, str) or (tensor_names is not None and not tensor_names):
            raise ValueError("tensor_names is a collection of names; without it all are loaded")
        self.close()
        self._started = time.monotonic()
        self.device_str = device
        names = None if tensor_names is None else frozenset(tensor_names)
        self._describe(paths, names)
        chosen: dict[str, Any] = {"device": device or "cpu", **_environment()}
        if names is not None:
            chosen["select"] = names.__contains__
        if is_distributed:
            from loaderhint.distributed import iterate_files as iterate_in_group

            self._tensors = iterate_in_group(paths, **chosen)
        else:
            self._tensors = iterate_files(paths, **chosen)

    def get_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield `(name, tensor)`; tensors are the caller's for as long as it likes."""
        if self._tensors is None:
            return
        with closing(self._tensors) as tensors:
            yield from tensors
        seconds = time.monotonic() - self._started
        _log.info("%d bytes to %s in %.2f s", self.total_size, self.device_str, seconds)

    def _describe(self, paths: list[str], names: frozenset[str] | None) -> None:
        with open_files(paths) as files:
            headers = read_headers(files)
        self.files_to_tensors_metadata = {
            number: [
                TensorMetadata(one.name, list(one.shape), one.dtype, one.stop - one.start)
                for one in header.tensors
                if names is None or one.name in names
            ]
            for number, header in enumerate(headers)
        }
        found = [one for kept in self.files_to_tensors_metadata.values() for one in kept]
        missing = sorted((names or frozenset()).difference(one.name for one in found))
        if missing:
            raise ValueError(f"no file has the tensors {', '.join(missing)}")
        self.total_size = sum(one.size_bytes for one in found)


def _environment() -> dict[str, int]:
    """What Run:ai's variables say, where they do: threads, and bytes loaded and not taken.

    Its -1, no limit, is a limit that no model reaches; its 0, one tensor at a time, is one byte.
    """
    chosen = {}
    threads = _whole_number("RUNAI_STREAMER_CONCURRENCY")
    if threads is not None:
        chosen["threads"] = max(1, threads)
    limit = _whole_number("RUNAI_STREAMER_MEMORY_LIMIT")
    if limit is not None:
        chosen["memory_limit_bytes"] = 1 << 62 if limit < 0 else max(1, limit)
    return chosen


def _whole_number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{variable} is a whole number, not {text!r}") from error


class PrefetchLoader:
    """Tensors that load in the background: iterate as they are ready, or `take` one by name.

    The mutable state of PrefetchLoader is what has come and was not taken, which names are left,
    and the thread that loads. INVARIANT: a name is in `_left` until its tensor is handed out.
    """

    def __init__(
        self,
        infos: Mapping[str, TensorInfo],
        tensors: Generator[tuple[str, torch.Tensor], None, None],
        ready_max: int,
    ) -> None:
        self._infos = dict(infos)
        self._left = dict.fromkeys(infos)
        self._tensors = tensors
        self._ready_max = ready_max
        self._ready: dict[str, torch.Tensor] = {}
        self._awaited: set[str] = set()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._load, name="loaderhint-prefetch", daemon=True)

    def start(self) -> None:
        """Begin to load; once."""
        self._thread.start()

    def names(self) -> list[str]:
        """The names that are loaded, all of them, in the order of the plan."""
        return list(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def get_tensor_meta(self, name: str) -> TensorInfo:
        """Type and shape of a whole tensor in its file. Raises KeyError."""
        return self._infos[name]

    def take(self, name: str) -> torch.Tensor:
        """Wait for a tensor and take it, once.

        Raises KeyError for a name that is not there or was taken, RuntimeError once closed, and
        what loading raises.
        """
        with self._changed:
            if name not in self._left:
                raise KeyError(name)
            self._awaited.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: name in self._ready or self._error or self._closed)
            self._awaited.discard(name)
            return self._hand_out(name)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what was not taken, as it is ready."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ready or self._error or self._closed or not self._left
                )
                if not self._left:
                    return
                name = next(iter(self._ready), "")
                tensor = self._hand_out(name)
            yield name, tensor

    def close(self) -> None:
        """Stop loading; what was taken stays."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> PrefetchLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hand_out(self, name: str) -> torch.Tensor:
        if name in self._ready:
            del self._left[name]
            self._changed.notify_all()
            return self._ready.pop(name)
        if self._error is not None:
            raise self._error
        raise RuntimeError("the loader is closed")

    def _load(self) -> None:
        try:
            with closing(self._tensors) as tensors:
                for name, tensor in tensors:
                    if not self._keep(name, tensor):
                        return
        except BaseException as error:  # noqa: BLE001 the body of a thread: its taker hears it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _keep(self, name: str, tensor: torch.Tensor) -> bool:
        """Wait for room and keep a tensor; False once closed. Who waits for a name gets on."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or bool(self._awaited)
                    or sum(one.nbytes for one in self._ready.values()) < self._ready_max
                )
            )
            if not self._closed:
                self._ready[name] = tensor
                self._changed.notify_all()
            return not self._closed


def prefetch(
    path: str | os.PathLike[str],
    plan: Mapping[str, slice | None] | None = None,
    *,
    device: Device | None = None,
    threads: int = 8,
) -> PrefetchLoader:
    """Load a file, or what `plan` names of it, in the background.

    `plan` maps names to None or a slice of the first dimension, as `safe_open(…).prefetch` of
    safetensors 0.9 has it. Raises OSError, HeaderError, PlanError.
    """
    cuts: dict[str, Cut] = {name: cut for name, cut in (plan or {}).items() if cut is not None}
    names = None if plan is None else list(plan)
    with open_files(path) as files:
        headers = read_headers(files)
    parts = plan_parts(headers, tensors=names, slices=cuts)
    unusable = [name for name, cut in cuts.items() if not isinstance(cut, slice)]
    if unusable:
        raise PlanError(f"tensor {unusable[0]!r}: a slice of the first dimension, or None")
    tensors = iterate_files(
        path,
        device="cpu" if device is None else device,
        tensors=names,
        slices=cuts,
        threads=threads,
    )
    loader = PrefetchLoader({one.name: one.tensor for one in parts}, tensors, PREFETCH_BYTES_MAX)
    loader.start()
    return loader
