"""A directory that is slow for one stream and fast for many, as distributed file systems are.

A FUSE file system in a process of its own, which shows the files of another directory; each open
file gives so many MiB/s, each request has a latency, and nothing limits how many there are. It
shares no code with fusefs. The one idea: it counts what is under way at once, so that a test need
not measure time to see that a reader is parallel.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyfuse3
import trio

ROOT = Path(__file__).resolve().parent.parent.parent
START_LIMIT_S = 30.0
END_LIMIT_S = 10.0
LARGE_BYTES = 128 << 10
"""More than the kernel's readahead asks for: whoever does is reading directly."""
BELIEVED_S = 300.0
"""How long the kernel may believe names and sizes: nothing here changes."""


@dataclass(slots=True)
class Traffic:
    """What was asked for since the last look; `…_max` are of requests under way at once."""

    requests: int = 0
    bytes: int = 0
    requests_max: int = 0
    files_max: int = 0


@dataclass(frozen=True, slots=True)
class Throttled:
    """A mounted directory."""

    path: Path
    process: subprocess.Popen[bytes]

    def traffic(self) -> Traffic:
        """Return what was asked for since the last call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return Traffic(**json.loads(self.process.stdout.readline()))


@contextmanager
def open_throttled(
    files: Path,
    mountpoint: Path,
    rate_mb: float,
    latency_ms: float,
    refuse_direct: bool = False,
    total_mb: float | None = None,
) -> Iterator[Throttled]:
    """Show the files of the directory `files` at `mountpoint`, both there already.

    `rate_mb` are MiB/s of each open file, `total_mb` of all together.
    """
    # The kernel kills it with us, also when we are killed ourselves; the mount is then dead.
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", __name__]
    command += [str(files), str(mountpoint), f"--rate-mb={rate_mb}", f"--latency-ms={latency_ms}"]
    if total_mb is not None:
        command.append(f"--total-mb={total_mb}")
    process = subprocess.Popen(
        [*command, *(["--refuse-direct"] if refuse_direct else [])],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the opener
    )
    throttled = Throttled(mountpoint, process)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the throttled directory did not start"
        _widen(mountpoint)
        yield throttled
    finally:
        _end(process, mountpoint)


def _widen(mountpoint: Path) -> None:
    """Have the kernel send more than 12 direct reads at once, FUSE's own limit, if we may."""
    device = os.minor(mountpoint.stat().st_dev)
    with contextlib.suppress(OSError):  # root's to say; and without it there are still 12
        Path(f"/sys/fs/fuse/connections/{device}/max_background").write_text("256")


def _end(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """End the server by closing its input; if it does not go, end it and its mount."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    if os.path.ismount(mountpoint) or _is_dead(mountpoint):
        subprocess.run(["fusermount3", "-uz", str(mountpoint)], check=True)


def _is_dead(mountpoint: Path) -> bool:
    try:
        mountpoint.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


@dataclass(slots=True)
class _Open:
    """An open file: `free_s` is when it has sent what was asked of it so far."""

    fd: int
    free_s: float = 0.0
    under_way: int = 0
    refused: bool = False


class _Files(pyfuse3.Operations):
    """The root and the files in it, which have the inodes from 2 on."""

    def __init__(self, files: Path, options: argparse.Namespace) -> None:
        super().__init__()
        self._paths = sorted(path for path in files.iterdir() if path.is_file())
        self._rate = options.rate_mb * (1 << 20)
        self._total = options.total_mb * (1 << 20)
        self._latency_s = options.latency_ms / 1000
        self._refuse_direct = options.refuse_direct
        # The mutable state of _Files is what is open, when all of it together has sent what was
        # asked for so far, and the traffic.
        self._free_s = 0.0
        self._open: dict[int, _Open] = {}
        self._under_way = 0
        self.traffic = Traffic()

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        for number, path in enumerate(self._paths):
            if os.fsencode(path.name) == name:
                return self._attributes(number + 2)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for number, path in list(enumerate(self._paths))[start_id:]:
            attributes = self._attributes(number + 2)
            name = os.fsencode(path.name)
            if not pyfuse3.readdir_reply(token, name, attributes, number + 1):
                return

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        fd = os.open(self._paths[inode - 2], os.O_RDONLY)
        self._open[fd] = _Open(fd)
        return pyfuse3.FileInfo(fh=fd, keep_cache=True)

    async def release(self, fh: int) -> None:
        os.close(self._open.pop(fh).fd)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        file, traffic = self._open[fh], self.traffic
        if self._refuse_direct and size > LARGE_BYTES and not file.refused:
            file.refused = True
            raise pyfuse3.FUSEError(errno.EINVAL)
        self._under_way += 1
        file.under_way += 1
        traffic.requests += 1
        traffic.requests_max = max(traffic.requests_max, self._under_way)
        busy = sum(each.under_way > 0 for each in self._open.values())
        traffic.files_max = max(traffic.files_max, busy)
        data = os.pread(file.fd, size, off)
        traffic.bytes += len(data)
        now = trio.current_time()
        file.free_s = max(file.free_s, now) + len(data) / self._rate
        self._free_s = max(self._free_s, now) + len(data) / self._total
        try:
            await trio.sleep_until(max(file.free_s, self._free_s) + self._latency_s)
        finally:
            self._under_way -= 1
            file.under_way -= 1
        return data

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.entry_timeout = entry.attr_timeout = BELIEVED_S
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
            return entry
        status = self._paths[inode - 2].stat()
        entry.st_mode = stat.S_IFREG | 0o644
        entry.st_size = status.st_size
        entry.st_mtime_ns = status.st_mtime_ns
        return entry


async def _answer(files: _Files) -> None:
    """Tell the traffic for each line of standard input; its end is ours."""
    while True:
        await trio.lowlevel.wait_readable(sys.stdin)
        if not os.read(0, 1):
            pyfuse3.terminate()
            return
        traffic, files.traffic = files.traffic, Traffic()
        print(json.dumps(asdict(traffic)), flush=True)


async def _serve(files: _Files) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer, files)
        print("ready", flush=True)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path)
    parser.add_argument("mountpoint")
    parser.add_argument("--rate-mb", type=float)
    parser.add_argument("--total-mb", type=float, default=math.inf)
    parser.add_argument("--latency-ms", type=float)
    parser.add_argument("--refuse-direct", action="store_true")
    options = parser.parse_args()
    files = _Files(options.files, options)
    pyfuse3.init(files, options.mountpoint, {"fsname=throttled", *pyfuse3.default_options})
    try:
        trio.run(_serve, files)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
