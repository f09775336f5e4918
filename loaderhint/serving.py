"""What the plugins of serving engines have in common: hints while one loads, and its tensors.

Imports nothing of any engine, and torch only to load. The one idea: an engine's own way to load
stays as it is. A plugin adds a hint to it, which no engine notices, or takes the place of the one
step that turns files into tensors.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from loaderhint import channel
from loaderhint.delivery import THREADS
from loaderhint.hints import Hint, hint
from loaderhint.loading import READY_BYTES_MAX
from loaderhint.plan import Select
from loaderhint.wishes import Group

Tensors = Generator[tuple[str, Any], None, None]
"""Names and tensors; torch is not imported for a type."""

_KEYS = ("concurrency", "distributed", "memory_limit")

_log = logging.getLogger("loaderhint")


@dataclass(frozen=True, slots=True)
class Settings:
    """The extra configuration of a format that streams; names and meaning are Run:ai's."""

    distributed: bool = False
    """Ranks on several mounts split the reads and broadcast."""
    concurrency: int = THREADS
    """Reads at a time, where files are read."""
    memory_limit_bytes: int | None = READY_BYTES_MAX
    """Loaded and not yet taken by the engine, on each rank; None for no limit."""


def settings_of(extra: object) -> Settings:
    """What `--model-loader-extra-config` says. Raises ValueError, naming what is legal.

    `memory_limit` is in bytes, -1 for no limit, 0 for one tensor at a time.
    """
    if extra is None:
        extra = {}
    if not isinstance(extra, dict):
        raise ValueError(f"the extra config is an object, not {extra!r}")  # noqa: TRY004 as vLLM
    unknown = sorted(str(key) for key in extra if key not in _KEYS)
    if unknown:
        raise ValueError(
            f"unknown keys in the extra config: {', '.join(unknown)}; there are {', '.join(_KEYS)}"
        )
    distributed = extra.get("distributed", False)
    if type(distributed) is not bool:
        raise ValueError(f"distributed is true or false, not {distributed!r}")
    concurrency = extra.get("concurrency", THREADS)
    if type(concurrency) is not int or concurrency < 1:
        raise ValueError(f"concurrency is a whole number from 1, not {concurrency!r}")
    limit = extra.get("memory_limit", READY_BYTES_MAX)
    if type(limit) is not int or limit < -1:
        raise ValueError(f"memory_limit is bytes, 0 or -1, not {limit!r}")
    return Settings(distributed, concurrency, None if limit == -1 else max(1, limit))


class Told:
    """The hints of one loader, alive while it reads.

    The mutable state of Told is its hints, by the files they are of.
    """

    def __init__(self) -> None:
        self._hints: dict[tuple[str, ...], Hint] = {}

    def tell(self, files: Iterable[str], group: Callable[[Sequence[str]], Group | None]) -> None:
        """Hint that these files are read next, in this order. Twice is once; nothing is raised.

        `group` is asked only where there is a mount.
        """
        listed = tuple(files)
        if listed in self._hints or not listed or not is_on_mount(listed[0]):
            return
        self._hints[listed] = given = hint(listed, group=group(listed))
        _log.info("told fusefs of %d files by %s", len(listed), given.channel)

    def while_read(self, tensors: Iterable[Any]) -> Iterator[Any]:
        """Yield what the engine reads itself; the hints end with it."""
        try:
            yield from tensors
        finally:
            self.close()

    def close(self) -> None:
        """End the hints. May be called again."""
        while self._hints:
            self._hints.popitem()[1].close()


def group_of(files: Sequence[str], rank: int, size: int) -> Group | None:
    """This rank among those of its host that load the same; None if it is alone.

    All ranks of a host have one parent, the launcher, so nothing needs to be sent around.
    """
    if not 0 <= rank < size or size == 1:
        return None
    names = "\n".join(sorted(os.path.basename(file) for file in files))
    digest = hashlib.sha256(f"{os.getppid()}\n{names}".encode()).hexdigest()
    return Group(digest[:32], rank, size)


def stream(
    files: Sequence[str],
    settings: Settings,
    *,
    group: Group | None = None,
    process_group: Any = None,
    keep: Select | None = None,
) -> Tensors:
    """Yield `(name, tensor)` of files as they are ready, on the CPU; tensors are the taker's.

    `process_group` is of ranks that all load these files, for a backend that knows the CPU; it is
    used if `settings` are distributed. What `keep` is false for is not yielded.
    """
    if settings.distributed and process_group is not None:
        from loaderhint.distributed import iterate_files as iterate_together

        together = iterate_together(
            files,
            process_group=process_group,
            threads=settings.concurrency,
            memory_limit_bytes=settings.memory_limit_bytes,
        )
        with closing(together) as tensors:
            # Each rank may keep others, but all of them must read the same.
            for name, tensor in tensors:
                if keep is None or keep(name):
                    yield name, tensor
        return
    from loaderhint.torch import iterate_files

    yield from iterate_files(
        files,
        select=keep,
        group=group,
        threads=settings.concurrency,
        memory_limit_bytes=settings.memory_limit_bytes,
    )


def is_on_mount(path: str) -> bool:
    """Whether a file is on a mount of fusefs, whatever links lead to it."""
    try:
        return channel.filesystem_of(os.stat(path).st_dev) == channel.FSTYPE
    except OSError:
        return False


def sees_mounts() -> bool:
    """Whether any mount of fusefs is to be seen from this process."""
    try:
        with open(channel.MOUNTINFO, "rb") as table:
            return f" - {channel.FSTYPE} ".encode() in table.read()
    except OSError:
        return False
