"""What a reader is told and what it tells: the frame around everything an application does.

One idea: the clock and the CPU meter run around the loading only; imports come before, comparing
with the originals after.
"""

from __future__ import annotations

import http.client
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SAMPLE_BYTES = 256
ASK_LIMIT_S = 30.0
WRONG_MAX = 5
"""So many complaints are told: enough to see what is wrong."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: where the files are, the same on tmpfs, their names; JSON-able.

    `url` is the folder in the bucket, for who reads without a mount. `marks` is the port that takes
    `/.again`. `seed` is the round: random readers do the same in each of them for everybody.
    """

    directory: str
    originals: str
    url: str
    names: list[str]
    marks: int
    seed: int
    ranks: int = 1

    @property
    def files(self) -> list[Path]:
        """What is to be read."""
        return [Path(self.directory) / name for name in self.names]

    def original(self, name: str) -> Path:
        """Where the bytes of a file came from."""
        return Path(self.originals) / name

    def again(self) -> None:
        """Tell the origin's log that the warm half begins."""
        connection = http.client.HTTPConnection("127.0.0.1", self.marks, timeout=ASK_LIMIT_S)
        connection.request("GET", "/.again", headers={"Connection": "close"})
        connection.getresponse().read()
        connection.close()


class Watch:
    """A stopwatch: `with Watch() as watch: …`, then `seconds` and `cpu_s` of this process.

    The mutable state of a watch is both figures: what began, until the block ends what passed.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_s = 0.0

    def __enter__(self) -> Watch:
        self.cpu_s = time.process_time()
        self.seconds = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self.seconds
        self.cpu_s = time.process_time() - self.cpu_s


def told(watch: Watch, size: int, wrong: list[str], **more: Any) -> dict[str, Any]:
    """Return a reader's result: time, CPU time, bytes that arrived, complaints, further figures."""
    return {
        "seconds": watch.seconds,
        "reader_cpu_s": watch.cpu_s,
        "bytes": size,
        "wrong": wrong[:WRONG_MAX],
        **more,
    }


def same(path: Path, offset: int, sample: bytes) -> bool:
    """Whether the file holds these bytes there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, len(sample), offset) == sample
    finally:
        os.close(fd)
