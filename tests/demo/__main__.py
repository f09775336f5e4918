"""The demo: `python -m tests.demo` (or `make demo`) loads a model from a bucket, and proves it.

Starts a real S3 server, makes a model of 1 GB, uploads it, mounts the bucket with the real command
and lets unmodified loaders read it, each from a fresh mount: what is cold is cold. Every tensor is
compared with the original. With `SOURCE=s3://…` in the environment that source is mounted instead,
with the credentials of the environment; there is no original to compare with then, and it says so.

Leaves nothing behind, also on Ctrl-C. Exit status: 0 all right, 1 a mismatch or a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.demo.loads import Result
from tests.harness.model import Model, make_model
from tests.harness.mounted import ROOT, Mounted, MountFailed, open_mount
from tests.harness.weed import Weed, WeedFailed, open_weed

SHARDS = 4
SHARD_BYTES = 250 << 20
"""1.05 GB in all: enough for a rate that means something, seconds on a laptop."""
BUCKET = "models"
PREFIX = "llama"
DISK_BYTES = 3 << 30
"""The model, the server's copy of it, and room to breathe."""
LOAD_TIMEOUT_S = 300.0
"""One load; the mount's watchdog ends a hang a little earlier."""
SOURCE_TIMEOUT_S = 3600.0
"""One load of a source of the user's: it may be a large model behind a slow link."""
TOUCH_SHARE = 3
"""Memory made ready before a cold load, in sizes of the model: the kernel's cache, the mount, the
loader's own copy."""
TOUCH_BYTES_MAX = 4 << 30
"""5 s where the host has to give it back first."""
RAM_SHARE = 2
"""A source is loaded with from_pretrained only if it takes no more than one half of the memory."""


class DemoFailed(Exception):
    """The demo cannot go on; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table: how the model is loaded, on which mount, and under which name."""

    title: str
    way: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class Row:
    """What a step came to."""

    step: Step
    result: Result
    requests: int
    peak_bytes: int


STEPS: tuple[Step, ...] = (
    Step("read() of every file, cold", "read", fresh=True),
    Step("safetensors through mmap, cold", "safetensors", fresh=True),
    Step("transformers from_pretrained, cold", "transformers", fresh=True),
    Step("transformers from_pretrained, again", "transformers", fresh=False),
)


def main() -> int:
    """Run the demo; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    source = os.environ.get("SOURCE")
    try:
        return _run_source(source) if source else _run_own()
    except (DemoFailed, MountFailed, WeedFailed, AssertionError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything is cleaned up", file=sys.stderr)
        return 130


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Leave through every context manager, once: the next Ctrl-C must not stop the cleaning."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_own() -> int:
    """Everything on this machine: server, model, mount, comparison."""
    with _open_directory() as directory:
        if shutil.disk_usage(directory).free < DISK_BYTES:
            raise DemoFailed(f"{directory.parent} has less than 3 GB free: set TMPDIR elsewhere")
        _say("starting an S3 server (SeaweedFS)")
        with open_weed(directory / "weed") as weed:
            _say(f"making a Llama of {SHARDS * SHARD_BYTES / 1e9:.1f} GB in {SHARDS} shards")
            model = make_model(directory / "model", SHARDS, SHARD_BYTES)
            _say(f"uploading it to s3://{BUCKET}/{PREFIX}")
            _upload(weed, model)
            source = f"s3://{BUCKET}/{PREFIX}"
            rows, limit_bytes = _load(
                source, STEPS, weed.environment, "", model.directory, model.size_bytes
            )
    print(_table(rows, limit_bytes))
    compared = sum(row.result.compared for row in rows)
    wrong = sorted({name for row in rows for name in row.result.wrong})
    if wrong or compared == 0:
        print(f"\nDIFFERENT from the original: {', '.join(wrong[:10]) or 'nothing was compared'}")
        return 1
    print(
        f"\nEqual to the original in every load: {len(model.files)} files byte by byte, "
        f"{model.tensors} tensors bit by bit."
    )
    return 0


def _run_source(source: str) -> int:
    """A bucket of the user's: mount it, find a model in it, read and load that."""
    with open_mount(source, command=_console_script(), warnings_expected=True) as mounted:
        folder, size_bytes, has_config = _find_model(mounted.path, source)
    name = folder.relative_to(mounted.path).as_posix()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    steps = STEPS
    if not has_config or size_bytes * RAM_SHARE > memory:
        why = "has no config.json" if not has_config else "is too large for this machine's memory"
        _say(f"the model {why}: no from_pretrained")
        steps = tuple(step for step in STEPS if step.way != "transformers")
    _say(f"{size_bytes / 1e9:.2f} GB of safetensors in {source}, folder {name}")
    rows, limit_bytes = _load(source, steps, {}, name, None, size_bytes)
    print(_table(rows, limit_bytes))
    print("\nThere is no original here to compare with: read and loaded, not checked.")
    return 0


def _find_model(root: Path, source: str) -> tuple[Path, int, bool]:
    """Return the first folder with safetensors, their size, and whether transformers knows it."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        shards = [Path(folder, name) for name in names if name.endswith(".safetensors")]
        if shards:
            size_bytes = sum(shard.stat().st_size for shard in shards)
            return Path(folder), size_bytes, "config.json" in names
    raise DemoFailed(f"{source} has no .safetensors file")


def _upload(weed: Weed, model: Model) -> None:
    client = weed.client()
    client.create_bucket(Bucket=BUCKET)
    for path in model.files:
        client.upload_file(str(path), BUCKET, f"{PREFIX}/{path.name}")
    # The disk writes the server's copy now, not under the first load.
    subprocess.run(["sync", "--file-system", str(weed.directory)], check=True)


def _load(
    source: str,
    steps: Sequence[Step],
    environment: Mapping[str, str],
    name: str,
    original: Path | None,
    model_bytes: int,
) -> tuple[list[Row], int]:
    """Do every step, each fresh one on a mount of its own. Returns rows and the memory limit."""
    rows: list[Row] = []
    limit_bytes = 0
    limit_s = LOAD_TIMEOUT_S if original else SOURCE_TIMEOUT_S
    while len(rows) < len(steps):
        with open_mount(
            source,
            environment=environment,
            command=_console_script(),
            limit_s=limit_s,
            warnings_expected=True,  # A machine that forbids a kernel knob still has its demo.
        ) as mounted:
            limit_bytes = mounted.status()["memory_limit_bytes"]
            _touch_memory(model_bytes)
            first = len(rows)
            while len(rows) < len(steps) and (len(rows) == first or not steps[len(rows)].fresh):
                step = steps[len(rows)]
                _say(f"{step.title} …")
                rows.append(_measure(step, mounted, mounted.path / name, original, limit_s))
    return rows, limit_bytes


def _touch_memory(model_bytes: int) -> None:
    """Touch and free memory, so that the load is measured and not where its memory comes from.

    On a virtual machine the host takes idle memory back, and its first touch afterwards costs 5-40
    times a warm one. Never more than half of what is free: nothing of others is pushed out.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(TOUCH_SHARE * model_bytes, TOUCH_BYTES_MAX, free // 2)
    subprocess.run([sys.executable, "-m", "tests.bench.touch", str(size)], cwd=ROOT, check=True)


def _measure(
    step: Step, mounted: Mounted, folder: Path, original: Path | None, limit_s: float
) -> Row:
    before = mounted.counters()["requests"]
    with mounted.open_peak() as peak:
        result = _run_load(step.way, folder, original, limit_s)
    return Row(step, result, mounted.counters()["requests"] - before, peak.bytes)


def _run_load(way: str, folder: Path, original: Path | None, limit_s: float) -> Result:
    command = [sys.executable, "-m", "tests.demo.loads", way, str(folder)]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [*command, *([str(original)] if original else [])],
        cwd=ROOT,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C comes to us; we end it.
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except BaseException:
        # Not waited for: it may hang in the mount, which goes next and frees it.
        process.kill()
        raise
    if process.returncode != 0:
        raise DemoFailed(f"loading with {way} failed: {errors.strip()[-2000:]}")
    return Result(**json.loads(output.splitlines()[-1]))


def _table(rows: Sequence[Row], limit_bytes: int) -> str:
    lines = ["", f"{'':36}{'seconds':>9}{'GB/s':>8}{'requests':>10}{'peak memory':>13}"]
    for row in rows:
        rate = row.result.bytes / row.result.seconds / 1e9
        lines.append(
            f"{row.step.title:36}{row.result.seconds:9.2f}{rate:8.2f}{row.requests:10d}"
            f"{row.peak_bytes / 2**20:9.0f} MiB"
        )
    lines.append(f"(memory of all processes of the mount; its limit is {limit_bytes >> 20} MiB)")
    return "\n".join(lines)


def _console_script() -> list[str]:
    return [str(Path(sys.executable).parent / "fusefs")]


@contextmanager
def _open_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="fusefs-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
