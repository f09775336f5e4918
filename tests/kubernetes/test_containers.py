"""Plugin, mounter and applications in containers, as on a node: propagation, rights, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusefs.cli.kubernetes import SIDECAR_RUN_FOLDER
from tests.harness.containers import Container, Volume, make_container
from tests.harness.csi import NOBODY, Node, mount_capability, open_node
from tests.kubernetes.loader import PROGRAM, Loader
from tests.kubernetes.test_sidecar import make_pod, published

CONTENT = b"".join(number.to_bytes(8, "little") for number in range(6 << 20))
"""48 MiB, every eight bytes different."""

MOUNTER_BYTES = 384 << 20
"""What its processes need, with an arena of 64 MiB, and some room."""

APP = 1000
TIMEOUT_S = 60.0

HOG = """
import sys, time
held = []
while True:
    held.append(b"x" * (4 << 20))
    time.sleep(0.01)
"""


class Containers:
    """Runs a node's programs in containers.

    The mutable state of Containers is those that were made, and the emptyDir of a pod.
    """

    def __init__(self) -> None:
        self.meeting: Path | None = None
        self.made: list[Container] = []
        self.newest: dict[str, Container] = {}

    def wrap(self, node: Node, name: str, command: list[str]) -> list[str]:
        """The command that runs `command` as the container called `name` has it."""
        folder = node.root / f"{name}-{len(self.made)}"
        kubelet, run = str(node.kubelet), str(node.run)
        environment = {**node.environment, "PATH": os.environ["PATH"]}
        if name == "plugin":
            volumes = [Volume(kubelet, kubelet, propagation="rshared"), Volume(run, run)]
            made = make_container(folder, command, environment, volumes, 0, privileged=True)
        elif name == "sidecar":
            models = str(node.root / "models")
            volumes = [
                Volume(str(self.meeting), str(SIDECAR_RUN_FOLDER)),
                Volume(models, models, read_only=True),
            ]
            made = make_container(
                folder, command, environment, volumes, APP, memory_bytes=MOUNTER_BYTES
            )
        else:
            models = str(node.root / "models")
            volumes = [Volume(run, run, read_only=True), Volume(models, models, read_only=True)]
            made = make_container(
                folder, command, environment, volumes, NOBODY, memory_bytes=MOUNTER_BYTES
            )
        self.made.append(made)
        self.newest[name] = made
        return made.command

    def application(self, node: Node, target: str, propagation: str) -> Container:
        """An application of no privilege that sees a volume as /models, like a restricted pod."""
        folder = node.root / f"application-{len(self.made)}"
        volume = Volume(target, "/models", read_only=True, propagation=propagation)
        arguments = [sys.executable, "-c", PROGRAM, "/models/model.bin"]
        made = make_container(folder, arguments, {"PATH": os.environ["PATH"]}, [volume], APP)
        self.made.append(made)
        return made


@pytest.fixture
def containers() -> Containers:
    """Those of one test."""
    return Containers()


@pytest.fixture
def node(containers: Containers, tmp_path: Path) -> Iterator[Node]:
    """A node whose kubelet folder is a shared mount, as kubelet demands of the host."""
    with open_node(
        "--file-root=/",
        wrap=containers.wrap,
        prepare=_prepare,
        release=containers_release(containers),
    ) as node:
        yield node


def _prepare(node: Node) -> None:
    node.kubelet.mkdir()
    node.run.mkdir()
    models = node.root / "models"
    models.mkdir()
    (models / "model.bin").write_bytes(CONTENT)
    _run("mount", "--bind", str(node.kubelet), str(node.kubelet))
    _run("mount", "--make-private", str(node.kubelet))
    _run("mount", "--make-shared", str(node.kubelet))


def containers_release(containers: Containers) -> Callable[[Node], None]:
    """What to do before a node's folders are removed."""

    def release(node: Node) -> None:
        for container in containers.made:
            container.remove()
        _run("umount", "--lazy", str(node.kubelet))

    return release


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)


@pytest.fixture
def target(node: Node) -> Iterator[str]:
    """The models at a target; afterwards it can be removed."""
    target = node.target()
    with node.client() as client:
        client.call(
            "NodePublishVolume",
            volume_id="v",
            target_path=target,
            volume_capability=mount_capability(),
            volume_context={"source": f"file://{node.root}/models", "engine.memory": "64M"},
            readonly=True,
        )
        yield target
        client.call("NodeUnpublishVolume", volume_id="v", target_path=target)
    assert not os.path.lexists(target)


def _start(container: Container) -> subprocess.Popen[str]:
    return subprocess.Popen(
        container.command,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("propagation", ["rprivate", "rslave"])
def test_an_unprivileged_pod_reads_a_model(
    node: Node, containers: Containers, target: str, propagation: str
) -> None:
    """With mountPropagation None and HostToContainer, as uid 1000 without a capability."""
    with _start(containers.application(node, target, propagation)) as process:
        loader = Loader(process)
        loader.half()
        loader.go_on()
        loader.finish(CONTENT)


def test_the_mounter_has_no_rights(node: Node, containers: Containers, target: str) -> None:
    """The serving processes are nobody's, hold no capability, and see no mount of ours."""
    container = containers.newest["mounter"]
    pids = (container.cgroup.directory / "cgroup.procs").read_text().split()
    assert len(pids) >= 3
    for pid in pids:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert "fuse.fusefs" not in Path(f"/proc/{pid}/mountinfo").read_text()
    assert os.path.lexists(target)


def test_a_mounter_out_of_memory_costs_a_pause(
    node: Node, containers: Containers, target: str
) -> None:
    """The kernel kills for memory in the middle of a load; kubelet starts it again; it finishes."""
    with _start(containers.application(node, target, "rprivate")) as process:
        loader = Loader(process)
        loader.half()
        cgroup = containers.newest["mounter"].cgroup
        # The hog's own score is lower: what serves is killed before it.
        hog = [sys.executable, "-c", HOG]
        with subprocess.Popen([*cgroup.prefix_command, *hog], cwd="/") as eater:
            try:
                _wait_until(lambda: _is_killed(cgroup, node))
            finally:
                eater.kill()
        # As with memory.oom.group, which Kubernetes sets: all of the container goes.
        containers.newest["mounter"].remove()
        assert node.mounter is not None
        assert node.mounter.wait(TIMEOUT_S) != 0
        node.start_mounter()
        loader.go_on()
        loader.finish(CONTENT)


def test_a_sidecar_without_rights_comes_back(node: Node, containers: Containers) -> None:
    """A restricted pod serves itself: its sidecar is killed in the middle; the load finishes."""
    pod = make_pod(node, node.root / "models")
    containers.meeting = pod.meeting
    with published(pod, **{"engine.memory": "64M"}) as target:
        node.start_sidecar(SIDECAR_RUN_FOLDER)
        with _start(containers.application(node, target, "rprivate")) as process:
            loader = Loader(process)
            loader.half()
            first = containers.newest["sidecar"]
            pids = (first.cgroup.directory / "cgroup.procs").read_text().split()
            assert len(pids) >= 3
            for pid in pids:
                status = Path(f"/proc/{pid}/status").read_text()
                assert f"Uid:\t{APP}\t{APP}\t{APP}\t{APP}" in status
                assert "CapEff:\t0000000000000000" in status
            first.remove()  # all of it at once, as for want of memory
            assert node.sidecar is not None
            assert node.sidecar.wait(TIMEOUT_S) != 0
            node.start_sidecar(SIDECAR_RUN_FOLDER)
            loader.go_on()
            loader.finish(CONTENT)


def _is_killed(cgroup: Any, node: Node) -> bool:
    assert node.mounter is not None
    if node.mounter.poll() is not None:
        return True
    try:
        return bool(cgroup.killed())
    except FileNotFoundError:
        return True  # with its last process


def _wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)
