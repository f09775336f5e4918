"""A kubelet in so far as a driver meets one: it registers drivers and keeps volumes published.

As the real one does: it watches plugins_registry, asks who is there and tells how it went; it
makes a volume's folder and not the target; it repeats every publish with fresh tokens (far more
often than the real one). A final error there costs the volume, which is what tests look for.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fusefs.kubernetes.wire import caller, message
from tests.harness.csi import Client, Node, mount_capability

REPUBLISH_S = 0.2
REGISTRATION_TIMEOUT_S = 60.0
UNCERTAIN = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)
"""Not final to kubelet (csi_client.go: isFinalError)."""


@dataclass
class Pod:
    """One pod with one volume of the driver."""

    attributes: dict[str, str]
    name: str = "server-0"
    namespace: str = "models"
    account: str = "server"
    secrets: dict[str, str] = field(default_factory=dict)
    audience: str = ""
    tokens: int = 0
    target: str = ""

    def context(self) -> dict[str, str]:
        """Its attributes, with what kubelet adds (podInfoOnMount, tokenRequests)."""
        self.tokens += 1
        more = {
            "csi.storage.k8s.io/pod.name": self.name,
            "csi.storage.k8s.io/pod.namespace": self.namespace,
            "csi.storage.k8s.io/serviceAccount.name": self.account,
            "csi.storage.k8s.io/ephemeral": "true",
        }
        if self.audience:
            token = {"token": f"token-{self.tokens}", "expirationTimestamp": "2030-01-01T00:00:00Z"}
            more["csi.storage.k8s.io/serviceAccount.tokens"] = json.dumps({self.audience: token})
        return {**self.attributes, **more}


class Kubelet:
    """The kubelet of one node.

    The mutable state of Kubelet is its pods, and what the repeated publishes met.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._client = Client(node.endpoint)
        self._pods: list[Pod] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.repeated = 0
        self.uncertain: list[str] = []
        self.final: list[str] = []

    def register(self) -> tuple[str, str]:
        """Find the driver's socket, as the plugin watcher does; returns its name and endpoint."""
        registry = self._node.kubelet / "plugins_registry"
        until = time.monotonic() + REGISTRATION_TIMEOUT_S
        while not (found := sorted(registry.glob("*.sock"))):
            assert time.monotonic() < until, "no driver came"
            time.sleep(0.05)
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix://{found[0]}", options) as channel:
            service = "pluginregistration.Registration"
            get_info = caller(channel, service, "GetInfo")
            info = get_info(
                message("pluginregistration.InfoRequest")(), timeout=30, wait_for_ready=True
            )
            assert info.type == "CSIPlugin"
            assert list(info.supported_versions) == ["1.0.0"]
            notify = caller(channel, service, "NotifyRegistrationStatus")
            status = message("pluginregistration.RegistrationStatus")
            notify(status(plugin_registered=True), timeout=30)
        return info.name, info.endpoint

    def start(self, pod: Pod) -> str:
        """Publish a pod's volume, and keep publishing it; returns its target."""
        pod.target = self._node.target()
        self._publish(pod)
        with self._lock:
            self._pods.append(pod)
        return pod.target

    def stop(self, pod: Pod) -> None:
        """Unpublish it; then its folders must be free to be removed."""
        with self._lock:
            self._pods.remove(pod)
            self._client.call(
                "NodeUnpublishVolume", volume_id=_volume_id(pod), target_path=pod.target
            )
        shutil.rmtree(Path(pod.target).parent.parent.parent.parent)

    def repeat(self) -> None:
        """Publish all again and again, until `end`."""
        while not self._ended.wait(REPUBLISH_S):
            with self._lock:
                for pod in self._pods:
                    self._repeat_one(pod)

    def end(self) -> None:
        """Stop repeating."""
        self._ended.set()
        self._client.close()

    def _repeat_one(self, pod: Pod) -> None:
        try:
            self._publish(pod, timeout_s=10)
        except grpc.RpcError as error:
            list_of = self.uncertain if error.code() in UNCERTAIN else self.final
            list_of.append(f"{error.code()}: {error.details()}")
        else:
            self.repeated += 1

    def _publish(self, pod: Pod, timeout_s: float = 60) -> None:
        fields: dict[str, Any] = {
            "volume_id": _volume_id(pod),
            "target_path": pod.target,
            "volume_capability": mount_capability(),
            "volume_context": pod.context(),
            "secrets": pod.secrets,
            "readonly": True,
        }
        self._client.call("NodePublishVolume", timeout_s, **fields)


def _volume_id(pod: Pod) -> str:
    return f"csi-{pod.namespace}-{pod.name}"


@contextmanager
def open_kubelet(node: Node) -> Iterator[Kubelet]:
    """A kubelet that repeats publishes until the context ends."""
    kubelet = Kubelet(node)
    thread = threading.Thread(target=kubelet.repeat, daemon=True)
    thread.start()
    try:
        yield kubelet
    finally:
        kubelet.end()
        thread.join()
