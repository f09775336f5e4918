"""Volumes that a container of the pod itself serves: the plugin mounts, and hands over to it."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from fusefs.kubernetes.places import link_of
from fusefs.kubernetes.sources import LEAVING_S
from fusefs.mount import kernel
from tests.harness.csi import Node, free_port, mount_capability, open_node
from tests.kubernetes.loader import open_loader
from tests.kubernetes.test_recovery import wait_until

CONTENT = b"".join(number.to_bytes(8, "little") for number in range(3 << 20))
"""24 MiB, every eight bytes different."""

CALL_S = 20.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file, as a container of the pod sees it."""
    folder = tmp_path_factory.mktemp("models")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o755)
    (folder / "model.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def node() -> Iterator[Node]:
    """A node that allows no file:// volumes: what a sidecar opens is the pod's own matter."""
    with open_node() as node:
        yield node


@dataclass(frozen=True)
class Pod:
    """A pod with one volume and one emptyDir, as kubelet lays them out."""

    node: Node
    target: str
    models: Path

    @property
    def uid(self) -> str:
        """Its UID."""
        return Path(self.target).parents[3].name

    @property
    def meeting(self) -> Path:
        """Its emptyDir."""
        return self._folder("volumes") / "fusefs"

    @property
    def socket(self) -> Path:
        """Where its sidecar finds the plugin."""
        return link_of(self.meeting)

    def set_up(self) -> None:
        """What kubelet does for the emptyDir (pkg/volume/emptydir: SetUpAt)."""
        self.meeting.mkdir(parents=True)
        self.meeting.chmod(0o777)
        marks = self._folder("plugins") / "fusefs"
        marks.mkdir(parents=True)
        (marks / "ready").touch()

    def publish(self, **attributes: str) -> dict[str, Any]:
        """What kubelet says."""
        context = {
            "source": f"file://{self.models}",
            "mode": "sidecar",
            "csi.storage.k8s.io/pod.uid": self.uid,
            **attributes,
        }
        return {
            "volume_id": f"csi-{self.uid}",
            "target_path": self.target,
            "volume_capability": mount_capability(),
            "volume_context": {name: text for name, text in context.items() if text},
        }

    def _folder(self, part: str) -> Path:
        return self.node.kubelet / "pods" / self.uid / part / "kubernetes.io~empty-dir"


def make_pod(node: Node, models: Path) -> Pod:
    """A pod whose emptyDir is set up."""
    pod = Pod(node, node.target(), models)
    pod.set_up()
    return pod


@pytest.fixture
def pod(node: Node, models: Path) -> Pod:
    """One pod."""
    return make_pod(node, models)


@contextmanager
def published(pod: Pod, **attributes: str) -> Iterator[str]:
    """Its volume at its target."""
    with pod.node.client() as client:
        client.call("NodePublishVolume", **pod.publish(**attributes))
    yield pod.target
    _unpublish(pod)
    assert not os.path.lexists(pod.target)
    assert [row for row in pod.node.our_mounts() if row.fstype == kernel.FSTYPE] == []


def _unpublish(pod: Pod) -> None:
    with pod.node.client() as client:
        client.call("NodeUnpublishVolume", CALL_S, volume_id="v", target_path=pod.target)


def _page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:  # not up yet
        return 0, ""


def test_a_pod_serves_its_own_volume(node: Node, pod: Pod) -> None:
    """The publish waits for no container; then the sidecar serves, and hints have their socket."""
    port = free_port()
    with published(pod) as target:
        node.start_sidecar(pod.meeting, port)
        with open_loader(f"{target}/model.bin") as loader:
            loader.half()
            loader.go_on()
            loader.finish(CONTENT)
        wait_until(lambda: _page(port, "/readyz")[0] == 200)
        assert "fusefs_mounter_connected 1" in _page(port, "/metrics")[1]
        wait_until(lambda: _is_superblock_read_only(target))
        assert _can_connect(f"{target}/.fusefs/socket")
        with node.client() as client:
            stats = client.call(
                "NodeGetVolumeStats", volume_id=f"csi-{pod.uid}", volume_path=target
            )
        assert not stats.volume_condition.abnormal


def _is_superblock_read_only(target: str) -> bool:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    (options,) = [row[-1] for row in rows if row[4] == target]
    return "ro" in options.split(",")


def _can_connect(path: str) -> bool:
    folder = os.open(os.path.dirname(path), os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)
    return True


def _kill_sidecar(pod: Pod) -> None:
    pod.node.kill("sidecar")
    pod.node.start_sidecar(pod.meeting)


def _end_sidecar(pod: Pod) -> None:
    assert pod.node.terminate("sidecar") == 0
    pod.node.start_sidecar(pod.meeting)


def _kill_plugin(pod: Pod) -> None:
    pod.node.kill("plugin")
    pod.node.start_plugin()


def _one_after_the_other(pod: Pod) -> None:
    """Each holds what the other needs: the plugin has it back before the sidecar goes."""
    _kill_plugin(pod)
    wait_until(lambda: pod.node.log.count("the pod's sidecar is ready") == 2)
    _kill_sidecar(pod)


@pytest.mark.parametrize(
    "trouble", [_kill_sidecar, _end_sidecar, _kill_plugin, _one_after_the_other]
)
def test_a_load_outlives(node: Node, pod: Pod, trouble: Callable[[Pod], None]) -> None:
    """A load under way finishes, every byte right, whichever of the two is started anew."""
    with published(pod) as target:
        node.start_sidecar(pod.meeting)
        with open_loader(f"{target}/model.bin") as loader:
            loader.half()
            trouble(pod)
            loader.go_on()
            loader.finish(CONTENT)
        with node.client() as client:
            client.call("NodePublishVolume", CALL_S, **pod.publish())


def test_a_sidecar_that_does_not_come_back(node: Node, pod: Pod) -> None:
    """It ended in order: readers wait a moment, then get an error; the next publish mounts anew."""
    with published(pod) as target:
        node.start_sidecar(pod.meeting)
        assert os.listdir(target) == ["model.bin"]
        wait_until(lambda: _is_superblock_read_only(target))
        assert node.terminate("sidecar") == 0
        began = time.monotonic()
        with pytest.raises(OSError, match=target) as refused:
            os.statvfs(target)  # which the kernel never answers by itself
        assert refused.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        assert LEAVING_S - 1 < time.monotonic() - began < LEAVING_S + CALL_S
        with node.client() as client:
            client.call("NodePublishVolume", CALL_S, **pod.publish())
        node.start_sidecar(pod.meeting)
        assert Path(target, "model.bin").read_bytes() == CONTENT


def test_pods_do_not_share(node: Node, models: Path) -> None:
    """Two pods with equal volumes: two mounts, and the end of one is nothing to the other."""
    first, second = make_pod(node, models), make_pod(node, models)
    with published(second), node.client() as client:
        client.call("NodePublishVolume", **first.publish())
        assert len(node.keys()) == 2
        node.start_sidecar(second.meeting)
        assert os.listdir(second.target) == ["model.bin"]
        _unpublish(first)
        assert len(node.keys()) == 1
        assert Path(second.target, "model.bin").read_bytes() == CONTENT


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no pod": ({"csi.storage.k8s.io/pod.uid": ""}, "podInfoOnMount: true"),
    "a pod elsewhere": ({"csi.storage.k8s.io/pod.uid": "../../x"}, "podInfoOnMount: true"),
    "a folder elsewhere": ({"sidecarVolume": "../../../etc"}, "name of an emptyDir"),
    "no such mode": ({"mode": "both"}, "mode must be one of shared, sidecar"),
    "no sidecar": ({"mode": "", "sidecarVolume": "fusefs"}, "sidecarVolume is for volumes with"),
    "the driver's own": ({"authentication": "driver"}, "those of the sidecar's container"),
}


def test_what_is_refused(node: Node, pod: Pod) -> None:
    """INVALID_ARGUMENT and what to change; nothing stays."""
    with node.client() as client:
        for attributes, sentence in REFUSED.values():
            code, said = client.refusal("NodePublishVolume", **pod.publish(**attributes))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert sentence in said
        fields = {**pod.publish(), "secrets": {"AWS_ACCESS_KEY_ID": "hunter2"}}
        code, said = client.refusal("NodePublishVolume", **fields)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "leave out authentication" in said
        assert "hunter2" not in said
        code, said = client.refusal("NodePublishVolume", **pod.publish(sidecarVolume="other"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "the pod has no emptyDir other" in said
    assert node.our_mounts() == []
    assert node.keys() == []


def test_one_emptydir_for_each_volume(node: Node, pod: Pod) -> None:
    """Two volumes that meet their sidecar in one place: the second one is refused."""
    with published(pod), node.client() as client:
        second = str(Path(pod.target).parents[1] / "second" / "mount")
        Path(second).parent.mkdir()
        fields = {**pod.publish(), "volume_id": "second", "target_path": second}
        code, said = client.refusal("NodePublishVolume", **fields)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "in the same emptyDir" in said
        assert len(node.keys()) == 1


def test_a_source_that_is_not_there(node: Node, pod: Pod) -> None:
    """The sidecar says what is wrong, and is not ready; the pod can be taken down."""
    port = free_port()
    with published(pod, source="file:///nowhere/at-all"):
        node.start_sidecar(pod.meeting, port)
        wait_until(lambda: "nowhere/at-all" in _page(port, "/readyz")[1])
        assert _page(port, "/readyz")[0] == 503
        assert _page(port, "/healthz")[0] == 200


def test_traps_in_the_emptydir(node: Node, pod: Pod, tmp_path: Path) -> None:
    """A link where the socket goes is replaced and not followed; a folder there is refused."""
    victim = tmp_path / "shadow"
    victim.write_text("secret")
    victim.chmod(0o600)
    pod.socket.symlink_to(victim)
    with published(pod):
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600
        assert victim.read_text() == "secret"
        assert stat.S_ISSOCK(os.lstat(pod.socket).st_mode)
    pod.socket.unlink()
    pod.socket.mkdir()
    with node.client() as client:
        code, said = client.refusal("NodePublishVolume", **pod.publish())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "is a directory: remove it" in said
    assert node.our_mounts() == []


NESTED = b"[" * 60_000
HOSTILE: tuple[bytes, ...] = (
    b"\xff\xfe",
    b"null",
    b"[]",
    NESTED,
    b'{"op": 7, "carries": false}',
    b'{"op": "ready", "carries": "yes"}',
    b'{"op": "held", "key": ["x"], "carries": false}',
    b'{"op": "answer", "to": {}, "carries": false}',
    b'{"op": "held", "key": "KEY", "carries": true}',
)


def _message(**fields: object) -> bytes:
    return json.dumps({"carries": False, **fields}).encode()


def test_a_pod_that_is_hostile(node: Node, models: Path, pod: Pod) -> None:
    """Whatever it sends, the plugin goes on, keeps no descriptor, and other pods notice nothing."""
    other = make_pod(node, models)
    with published(pod), node.client() as client:
        client.call("NodePublishVolume", **other.publish())
        node.start_sidecar(other.meeting)
        assert os.listdir(other.target) == ["model.bin"]
        wait_until(lambda: _is_superblock_read_only(other.target))  # the last that it waits for
        keys = node.keys()
        before = _descriptors(node)
        for data in HOSTILE:
            with _connection(pod) as connection:
                connection.send(data.replace(b"KEY", keys[0].encode()))
                if data is HOSTILE[-1]:
                    _send_false_estate(connection)
                connection.settimeout(CALL_S)
                assert connection.recv(1) == b""  # hung up on
        with _connection(pod) as connection:
            for key in keys:
                connection.send(_message(op="given up", key=f"{key}x"))
            connection.send(_message(op="leaving"))
        several = [_connection(pod) for _ in range(20)]
        for connection in several:
            connection.close()
        wait_until(lambda: _descriptors(node) == before)
        assert node.keys() == keys
        node.start_sidecar(pod.meeting)  # in the place of the other's, which goes on by itself
        assert Path(pod.target, "model.bin").read_bytes() == CONTENT
        _unpublish(other)


def test_a_pod_that_takes_nothing(node: Node, pod: Pod) -> None:
    """A sidecar that says it is ready and then is silent: the pod is taken down all the same."""
    with published(pod), _connection(pod) as connection:
        connection.send(_message(op="ready"))
        assert json.loads(connection.recv(1 << 16))["op"] == "serve"


def _connection(pod: Pod) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(pod.meeting, os.O_PATH)
    connection.connect(f"/proc/self/fd/{folder}/{pod.socket.name}")
    os.close(folder)
    return connection


def _send_false_estate(connection: socket.socket) -> None:
    """Pipes, for a connection and a memory; then it is asked for what it holds."""
    ends = os.pipe()
    estate = {"estate": 1, "init": "00", "device": "0:1", "listener": True, "why": ""}
    socket.send_fds(connection, [json.dumps(estate).encode()], list(ends))
    for end in ends:
        os.close(end)


def _descriptors(node: Node) -> int:
    assert node.plugin is not None
    return len(os.listdir(f"/proc/{node.plugin.pid}/fd"))
