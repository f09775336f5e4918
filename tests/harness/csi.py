"""The Kubernetes side for tests: a plugin and a mounter as processes, and calls to the plugin.

The plugin runs as root, the mounter without any privilege as process 1 of a PID namespace of its
own, as in their containers. The one idea: whatever a test does, leaving the context takes both
down and asserts that no mount, process or file of them is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fusefs.kubernetes.wire import caller, csi
from fusefs.mount import kernel
from tests.harness.memory import MARKER, marked_pids
from tests.harness.mounted import ROOT

DRIVER = "fusefs.csi"
LOG_CHARACTERS = 20_000
NOBODY = 65534
READY_TIMEOUT_S = 60.0
"""Starting Python takes a second on an idle machine."""
CALL_TIMEOUT_S = 60.0
LIMIT_S = 150.0
"""Like `mounted.LIMIT_S`: after it every connection of ours is aborted."""

SERVICES = {
    "Identity": ("GetPluginInfo", "GetPluginCapabilities", "Probe"),
    "Controller": (
        "CreateVolume",
        "DeleteVolume",
        "ValidateVolumeCapabilities",
        "ControllerGetCapabilities",
    ),
    "Node": (
        "NodePublishVolume",
        "NodeUnpublishVolume",
        "NodeGetVolumeStats",
        "NodeGetCapabilities",
        "NodeGetInfo",
    ),
}


Wrap = Callable[["Node", str, list[str]], list[str]]
"""From a node, the name of a program and its command to what is run instead."""


class Client:
    """Calls to a plugin: `client.NodeGetInfo()`; keywords are the request's fields."""

    def __init__(self, socket: Path) -> None:
        # As csi-sanity does: grpc would take the path for a name to be looked up.
        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix://{socket}", options)

    def call(self, method: str, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Any:
        """Make one call; raises grpc.RpcError."""
        service = next(name for name, methods in SERVICES.items() if method in methods)
        request = csi(f"{method}Request")(**fields)
        make = caller(self.channel, f"csi.v1.{service}", method)
        return make(request, timeout=timeout_s, wait_for_ready=True)

    def refusal(self, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
        """Make a call that fails: its code and sentence."""
        try:
            self.call(method, **fields)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"{method} succeeded")

    def close(self) -> None:
        """Let go of the connection."""
        self.channel.close()


@dataclass
class Node:
    """One node: its folders, its two processes, and what was published on it."""

    root: Path
    marker: str
    environment: Mapping[str, str]
    plugin_options: tuple[str, ...]
    wrap: Wrap
    plugin: subprocess.Popen[bytes] | None = None
    mounter: subprocess.Popen[bytes] | None = None
    sidecar: subprocess.Popen[bytes] | None = None
    http_ports: tuple[int, int] = (0, 0)
    published: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kubelet(self) -> Path:
        """Kubelet's folder."""
        return self.root / "kubelet"

    @property
    def run(self) -> Path:
        """The folder that both processes share."""
        return self.root / "run"

    @property
    def endpoint(self) -> Path:
        """Where the plugin is called."""
        return self.kubelet / "plugins" / DRIVER / "csi.sock"

    @property
    def log(self) -> str:
        """What both processes wrote."""
        return "".join(
            (self.root / name).read_text(errors="replace")
            for name in ("plugin.log", "mounter.log", "sidecar.log")
            if (self.root / name).exists()
        )

    def start_plugin(self) -> None:
        """Start it; it answers by and by (`client` waits for that)."""
        self.plugin = self._spawn(
            "plugin",
            [
                *_cli("csi-plugin"),
                f"--endpoint=unix://{self.endpoint}",
                "--node-id=node-1",
                f"--kubelet-dir={self.kubelet}",
                f"--run-dir={self.run}",
                f"--http-port={self.http_ports[0]}",
                *self.plugin_options,
            ],
        )

    def start_mounter(self) -> None:
        """Start it, without privilege and as process 1."""
        self.mounter = self._spawn(
            "mounter",
            [
                *_cli("csi-mounter"),
                f"--run-dir={self.run}",
                f"--http-port={self.http_ports[1]}",
            ],
        )

    def start_sidecar(self, folder: Path, http_port: int = 0) -> None:
        """Start one that serves a pod's volume, as unprivileged as the mounter."""
        command = [*_cli("csi-sidecar"), f"--run-dir={folder}", f"--http-port={http_port}"]
        self.sidecar = self._spawn("sidecar", command)

    def kill(self, name: str) -> None:
        """SIGKILL one of them, with all that runs below it."""
        process = getattr(self, name)
        if name == "plugin":
            process.kill()
        else:
            os.kill(_child_of(process.pid), signal.SIGKILL)
        process.wait()

    def terminate(self, name: str) -> int:
        """SIGTERM one of them and return its exit status."""
        process = getattr(self, name)
        target = process.pid if name == "plugin" else _child_of(process.pid)
        os.kill(target, signal.SIGTERM)
        status: int = process.wait(READY_TIMEOUT_S)
        return status

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Calls to the plugin."""
        client = Client(self.endpoint)
        try:
            yield client
        finally:
            client.close()

    def target(self, name: str = "volume") -> str:
        """A target's path as kubelet has it; its parent is there."""
        pod = self.kubelet / "pods" / str(uuid.uuid4())
        parent = pod / "volumes" / "kubernetes.io~csi" / name
        parent.mkdir(parents=True)
        return str(parent / "mount")

    def our_mounts(self) -> list[kernel.MountRow]:
        """What is mounted below this node's folders."""
        return [row for row in kernel.mount_rows() if row.mountpoint.startswith(f"{self.root}/")]

    def keys(self) -> list[str]:
        """The mount keys that have state."""
        return sorted(path.name for path in (self.run / "keys").iterdir())

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                self.wrap(self, name, command),
                cwd=ROOT,
                env={**self.environment, MARKER: self.marker},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process


UNPRIVILEGED = (
    "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
    "setpriv", "--pdeathsig=KILL", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
    "--bounding-set=-all,+dac_read_search", "--no-new-privs", "--",
)  # fmt: skip
"""As in its container, but for one thing: it may read, since the interpreter and this repository
may lie in root's own folders."""


def in_a_pid_namespace(node: Node, name: str, command: list[str]) -> list[str]:
    """The plugin as it is; the others without privilege, and as process 1."""
    return command if name == "plugin" else [*UNPRIVILEGED, *command]


def _cli(command: str) -> list[str]:
    return [sys.executable, "-m", "fusefs.cli", command]


def _child_of(pid: int) -> int:
    """The one child of `unshare`, which passes no signals on."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])


@contextmanager
def open_node(
    *plugin_options: str,
    environment: Mapping[str, str] | None = None,
    wrap: Wrap = in_a_pid_namespace,
    prepare: Callable[[Node], None] = lambda node: None,
    release: Callable[[Node], None] = lambda node: None,
    http_ports: tuple[int, int] = (0, 0),
    limit_s: float = LIMIT_S,
) -> Iterator[Node]:
    """A node with both processes; `environment` is added to theirs.

    `wrap` says how a program is run, `prepare` is called before the first and `release` after the
    last.

    Afterwards: AssertionError if anything of it is left that unpublishing should have removed.
    """
    root = Path(tempfile.mkdtemp(prefix="fusefs-node-")).resolve()
    root.chmod(0o755)
    options = (*plugin_options, "--controller")
    full = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    marker = uuid.uuid4().hex
    node = Node(root, marker, full, options, wrap, http_ports=http_ports)
    watchdog = threading.Timer(limit_s, _abort_all, [node])
    watchdog.start()
    try:
        prepare(node)
        node.start_plugin()
        node.start_mounter()
        yield node
        left = [row.mountpoint for row in node.our_mounts() if row.fstype == kernel.FSTYPE]
        keys, targets = node.keys(), list((node.run / "targets").iterdir())
        if left or keys or targets:
            sys.stderr.write(node.log[-LOG_CHARACTERS:])
    except BaseException:
        sys.stderr.write(node.log[-LOG_CHARACTERS:])
        raise
    finally:
        watchdog.cancel()
        _take_down(node, release)
    assert not left, f"still mounted: {left}"
    assert not keys, f"still kept: {keys}"
    assert not targets, f"still known: {targets}"


def _take_down(node: Node, release: Callable[[Node], None]) -> None:
    for process in node.started:
        if process.poll() is None:
            process.kill()
    _abort_all(node)
    for process in node.started:
        process.wait()
    until = time.monotonic() + 10.0
    while (pids := marked_pids(node.marker)) and time.monotonic() < until:
        time.sleep(0.05)
    release(node)
    shutil.rmtree(node.root)
    assert not pids, f"still running: {pids}"


def _abort_all(node: Node) -> None:
    """End every connection and take every mount away, whatever state it is in."""
    for row in reversed(node.our_mounts()):
        if row.fstype == kernel.FSTYPE:
            kernel.abort_connection(row.device)
            kernel.unmount(row.mountpoint, lazy=True)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mount_capability(
    mode: str = "SINGLE_NODE_WRITER", flags: Sequence[str] = (), group: str = "", fs_type: str = ""
) -> Any:
    """A capability of access type mount."""
    capability = csi("VolumeCapability")()
    capability.mount.mount_flags.extend(flags)
    capability.mount.volume_mount_group = group
    capability.mount.fs_type = fs_type
    modes = capability.AccessMode.DESCRIPTOR.enum_types_by_name["Mode"].values_by_name
    capability.access_mode.mode = modes[mode].number
    return capability


def block_capability() -> Any:
    """A capability of access type block."""
    capability = csi("VolumeCapability")()
    capability.block.SetInParent()
    capability.access_mode.mode = 1
    return capability
