"""One rank of a job: `python -m tests.loaderhint.ranks RANK WORLD RENDEZVOUS FOLDER SHARE`.

Loads in several ways and prints what it saw, a line of JSON for each; compares bit by bit itself.
"""

from __future__ import annotations

import datetime
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from loaderhint import delivery, distributed, files
from loaderhint.distributed import PeerFailed, iterate_files
from loaderhint.streamer import SafetensorsStreamer
from tests.loaderhint.weights import assert_same, expected

BROKEN = "broken.safetensors"


class Meter:
    """Counts the bytes of tensors that this process reads from files."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()
        self._read = delivery.read_fully

    def read_fully(self, fd: int, buffers: Sequence[memoryview], offset: int) -> None:
        """As delivery has it."""
        with self._lock:
            self.bytes += sum(len(buffer) for buffer in buffers)
        self._read(fd, buffers, offset)


def say(**facts: object) -> None:
    """One line for the test."""
    print(json.dumps(facts), flush=True)


def load(folder: Path, share: str | None, meter: Meter, what: str) -> None:
    """Load everything and compare."""
    meter.bytes = 0
    pairs = list(iterate_files(folder, share=share))
    paths = sorted(path for path in files.expand_paths(folder))
    assert_same(dict(pairs), expected(*map(Path, paths)))
    say(what=what, read_bytes=meter.bytes, names=[name for name, _ in pairs])


def fails(folder: Path, share: str | None, what: str, select: object = None) -> None:
    """Load what cannot be loaded."""
    try:
        list(iterate_files(folder, share=share, select=select))  # type: ignore[arg-type]
    except PeerFailed as error:
        say(what=what, peer=str(error))
    except (OSError, ValueError) as error:
        say(what=what, own=str(error))


def main() -> None:
    """All of it, in step with the other ranks."""
    rank, world, rendezvous, name, share = sys.argv[1:]
    folder = Path(name)
    meter = Meter()
    delivery.read_fully = meter.read_fully
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=int(rank),
        world_size=int(world),
        timeout=datetime.timedelta(seconds=60),
    )
    load(folder, share, meter, "split")
    distributed.BATCH_BYTES = 2000
    load(folder, share, meter, "small batches")
    load(folder, None, meter, "shared")
    with SafetensorsStreamer() as streamer:
        paths = files.expand_paths(folder)
        streamer.stream_files(paths, is_distributed=True)
        assert_same(dict(streamer.get_tensors()), expected(*map(Path, paths)))
    if rank == "2":
        (folder.parent / BROKEN).write_bytes(b"no header")
        fails(folder.parent / BROKEN, share, "no header")
        (folder.parent / BROKEN).unlink()
    else:
        fails(folder, share, "no header")
    wanted = "layers.0.F32".__eq__ if rank == "3" else None
    fails(folder, share, "other wishes", wanted)
    broken = delivery.read_fully

    def breaks(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
        raise OSError(5, "the disk is gone")

    delivery.read_fully = breaks if rank == "1" else broken
    fails(folder, share, "read error")
    dist.destroy_process_group()
    say(what="end", threads=[thread.name for thread in threading.enumerate()])


if __name__ == "__main__":
    main()
