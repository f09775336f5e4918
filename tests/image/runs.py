"""What the image has to do, each a function that asserts it: first its looks, then its pods."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fusefs
from tests.harness.weed import open_weed
from tests.image.containers import Bind, Container, Context, Image

Run = Callable[[Image, Mapping[str, Any], Path], None]

MODEL = {f"model-{number:05}.safetensors": bytes([number]) * (3 << 20) for number in range(4)}
READY_S = 60.0
"""A start takes seconds; the rest is for a busy machine."""


def knows_what_it_is(image: Image, config: Mapping[str, Any], work: Path) -> None:
    """Nobody's user, one entrypoint, labels, and the version of this source."""
    assert config["User"] == "65534:65534"
    assert config["Entrypoint"] == ["fusefs"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["Labels"]["org.opencontainers.image.version"] == fusefs.__version__
    assert not [text for text in config["Env"] if text.startswith("PIP_")]
    assert image.run(["--version"], Context()) == (0, f"fusefs {fusefs.__version__}\n")


def holds_nothing_that_raises_rights(image: Image, config: Mapping[str, Any], work: Path) -> None:
    """There is no fusermount3, no pip, no compiler, and no program of ours is setuid."""
    script = (
        "import os, shutil, sys\n"
        "found = [name for name in ('fusermount3', 'pip', 'gcc') if shutil.which(name)]\n"
        "for folder, _, files in os.walk('/opt'):\n"
        "    found += [f for f in files if os.lstat(os.path.join(folder, f)).st_mode & 0o6000]\n"
        "sys.exit(' '.join(found) if found else 0)\n"
    )
    python = Image(image.root, {**config, "Entrypoint": ["python3", "-c"]}, work / "runs")
    assert python.run([script], Context()) == (0, "")


def copies_a_model_without_any_right(image: Image, config: Mapping[str, Any], work: Path) -> None:
    """The init container of examples/sidecar-copy.yaml fetches a model, as nobody."""
    with _published(work / "copy") as (source, environment):
        volume = work / "copy" / "volume"
        volume.mkdir()
        volume.chmod(0o777)  # what fsGroup does
        context = Context([Bind(volume, "/models")], {**environment, "HOME": "/tmp"})
        status, output = image.run(["pull", source, "/models/llama"], context)
        assert status == 0, output
        _assert_model(volume / "llama")


def mounts_for_others(image: Image, config: Mapping[str, Any], work: Path) -> None:
    """The sidecar of examples/sidecar-privileged.yaml: an unprivileged app reads its mount."""
    with _pod(image, work / "sidecar") as pod:
        with pod.sidecar() as sidecar, pod.application() as application:
            pod.wait_ready(sidecar)
            alive = sidecar.execute("fusefs", "health", "--timeout", "25", "/volume/models")
            assert alive.returncode == 0, alive.stderr
            pod.assert_reads(application)
            pod.assert_read_only(application)
            assert sidecar.end("TERM") == 0, sidecar.output()
            assert application.execute("ls", "-A", "/volume/models").stdout == ""
        assert pod.mounts() == []


def mounts_again_after_a_kill(image: Image, config: Mapping[str, Any], work: Path) -> None:
    """A sidecar that was killed starts again over what it left; the running app sees the mount."""
    with _pod(image, work / "killed") as pod, pod.application() as application:
        with pod.sidecar() as sidecar:
            pod.wait_ready(sidecar)
            pod.assert_reads(application)
            assert sidecar.end("KILL") != 0
        with pod.sidecar() as sidecar:
            pod.wait_ready(sidecar)
            pod.assert_reads(application)
            assert len(pod.mounts()) == 1
            assert sidecar.end("TERM") == 0, sidecar.output()


RUNS: tuple[Run, ...] = (
    knows_what_it_is,
    holds_nothing_that_raises_rights,
    copies_a_model_without_any_right,
    mounts_for_others,
    mounts_again_after_a_kill,
)


class _Pod:
    """A pod of a sidecar and an application, with one volume between them."""

    def __init__(
        self, image: Image, volume: Path, source: str, environment: Mapping[str, str]
    ) -> None:
        self._image = image
        self._volume = volume
        self._source = source
        self._environment = environment

    @contextmanager
    def sidecar(self) -> Iterator[Container]:
        """The privileged container, with the arguments of the example."""
        arguments = ["mount", "--foreground", "--prepare", "-o", "allow_other"]
        context = Context(
            [Bind(self._volume, "/volume", "rshared")],
            {**self._environment, "FUSEFS_ENGINE_MEMORY": "64M"},
            privileged=True,
            user=0,
        )
        with self._image.open([*arguments, self._source, "/volume/models"], context) as container:
            yield container

    @contextmanager
    def application(self) -> Iterator[Container]:
        """An unprivileged container that waits to be told what to read."""
        context = Context([Bind(self._volume, "/volume", "rslave", read_only=True)])
        sleeping = Image(
            self._image.root, {"Entrypoint": ["sleep"], "Env": ["PATH=/usr/bin:/bin"]},
            self._image.work,
        )  # fmt: skip
        with sleeping.open(["infinity"], context) as container:
            yield container

    def wait_ready(self, sidecar: Container) -> None:
        """Probe as a kubelet does, until the probe succeeds. AssertionError after `READY_S`."""
        until = time.monotonic() + READY_S
        probe = ("fusefs", "health", "--ready", "--timeout", "15", "/volume/models")
        while (done := sidecar.execute(*probe)).returncode != 0:
            assert sidecar.process.poll() is None, sidecar.output()
            assert time.monotonic() < until, done.stderr + sidecar.output()

    def assert_reads(self, application: Container) -> None:
        """The application reads every byte."""
        for name, data in MODEL.items():
            path = f"/volume/models/{name}"
            done = application.execute("cmp", path, f"/volume/originals/{name}")
            assert done.returncode == 0, done
            assert len(data) > 0

    def assert_read_only(self, application: Container) -> None:
        """Nobody writes to the model."""
        done = application.execute("touch", "/volume/models/new")
        assert "Read-only file system" in done.stderr

    def mounts(self) -> list[str]:
        """The mounts of ours there are below the volume, as the host sees them."""
        rows = Path("/proc/self/mountinfo").read_text().splitlines()
        return [row for row in rows if " - fuse.fusefs " in row and str(self._volume) in row]


@contextmanager
def _pod(image: Image, folder: Path) -> Iterator[_Pod]:
    with _published(folder) as (source, environment):
        volume = folder / "volume"
        (volume / "originals").mkdir(parents=True)
        for name, data in MODEL.items():
            (volume / "originals" / name).write_bytes(data)
        # An emptyDir lies in a shared mount: kubelet's.
        subprocess.run(["mount", "--bind", str(volume), str(volume)], check=True)
        subprocess.run(["mount", "--make-shared", str(volume)], check=True)
        try:
            yield _Pod(image, volume, source, environment)
        finally:
            subprocess.run(["umount", "--recursive", "--lazy", str(volume)], check=True)


@contextmanager
def _published(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A model in a bucket of a real server: its SOURCE, and the environment that leads there."""
    folder.mkdir()
    with open_weed(folder) as weed:
        client = weed.client()
        client.create_bucket(Bucket="models")
        for name, data in MODEL.items():
            client.put_object(Bucket="models", Key=f"llama/{name}", Body=data)
        yield "s3://models/llama", weed.environment


def _assert_model(folder: Path) -> None:
    assert {path.name for path in folder.iterdir() if path.is_file()} == set(MODEL)
    for name, data in MODEL.items():
        assert (folder / name).read_bytes() == data, name
