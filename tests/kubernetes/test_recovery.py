"""Mounts outlive the plugin, the mounter, and upgrades of either, with loads under way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.csi import Client, Node, mount_capability, open_node
from tests.harness.memory import marked_pids
from tests.kubernetes.loader import open_loader

CONTENT = b"".join(number.to_bytes(8, "little") for number in range(4 << 20))
"""32 MiB, every eight bytes different."""

WAIT_S = 60.0


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of 32 MiB."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "model.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def node(big: Path) -> Iterator[Node]:
    """A fresh node: what is killed here is missed by no other test."""
    with open_node(f"--file-root={big}") as node:
        yield node


@contextmanager
def published(node: Node, big: Path) -> Iterator[str]:
    """The folder at a target."""
    target = node.target()
    with node.client() as client:
        client.call("NodePublishVolume", **publish(target, big))
    yield target
    with node.client() as client:
        client.call("NodeUnpublishVolume", volume_id="v", target_path=target)
    assert not os.path.lexists(target)
    assert node.our_mounts() == []


def publish(target: str, source: Path) -> dict[str, Any]:
    """What kubelet says."""
    return {
        "volume_id": "v",
        "target_path": target,
        "volume_capability": mount_capability(),
        "volume_context": {"source": f"file://{source}"},
    }


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return once it is so; AssertionError if it never is."""
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.05)


def _kill_mounter(node: Node) -> None:
    node.kill("mounter")
    node.start_mounter()


def _end_mounter(node: Node) -> None:
    assert node.terminate("mounter") == 0
    node.start_mounter()


def _kill_plugin(node: Node) -> None:
    node.kill("plugin")
    node.start_plugin()


def _end_plugin(node: Node) -> None:
    assert node.terminate("plugin") == 0
    node.start_plugin()


def _kill_plugin_then_mounter(node: Node) -> None:
    _kill_plugin(node)
    wait_until(lambda: is_served(node))
    _kill_mounter(node)


def _kill_keeper(node: Node) -> None:
    """Its daemon lives on, and must be dead before the next one comes."""
    keepers = [pid for pid in marked_pids(node.marker) if _name(pid) == "fusefs-keeper"]
    for pid in keepers:
        os.kill(pid, signal.SIGKILL)
    assert keepers


def _kill_daemon(node: Node) -> None:
    daemons = [pid for pid in marked_pids(node.marker) if _name(pid) == "fusefs-daemon"]
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    assert daemons


def _surge(node: Node) -> None:
    """The next version is up before this one goes, as with maxSurge: 1."""
    ready, old = "the mounter of this node is ready", node.mounter
    before = node.log.count(ready)
    node.start_mounter()
    wait_until(lambda: node.log.count(ready) > before)
    node.mounter, new = old, node.mounter
    assert node.terminate("mounter") == 0
    node.mounter = new


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_served(node: Node) -> bool:
    """Whether the plugin says so of every volume."""
    with node.client() as client:
        return all(not _condition(client, target).abnormal for target in _targets(node))


def _condition(client: Client, target: str) -> Any:
    ask: dict[str, Any] = {"volume_id": "v", "volume_path": target}
    return client.call("NodeGetVolumeStats", **ask).volume_condition


def _targets(node: Node) -> list[str]:
    return [row.mountpoint for row in node.our_mounts() if "/pods/" in row.mountpoint]


@pytest.mark.parametrize(
    "accident",
    [
        _end_mounter,
        _end_plugin,
        _kill_plugin_then_mounter,
        _kill_keeper,
        _kill_daemon,
        _surge,
    ],
)
def test_a_load_finishes_whatever_ends(
    node: Node, big: Path, accident: Callable[[Node], None]
) -> None:
    """A load goes on over the end of any process: right bytes, no error, and all is tidy after."""
    with published(node, big) as target, open_loader(f"{target}/model.bin") as loader:
        loader.half()
        accident(node)
        loader.go_on()
        loader.finish(CONTENT)
        wait_until(lambda: is_served(node))


def test_reads_wait_while_there_is_no_mounter(node: Node, big: Path) -> None:
    """Without a mounter a volume says so, reads wait, and none fails."""
    with published(node, big) as target, open_loader(f"{target}/model.bin") as loader:
        loader.half()
        node.kill("mounter")
        loader.go_on()
        wait_until(lambda: not is_served(node))
        with node.client() as client:
            assert "mounter" in _condition(client, target).message
        node.start_mounter()
        loader.finish(CONTENT)
        wait_until(lambda: is_served(node))


def test_when_both_end_at_once_the_next_publish_mounts_again(node: Node, big: Path) -> None:
    """Only then the connection is lost; the repeated publish shows the volume anew, over it."""
    with published(node, big) as target:
        node.kill("mounter")
        node.kill("plugin")
        with pytest.raises(OSError, match="not connected"):
            Path(target, "model.bin").read_bytes()
        node.start_plugin()
        node.start_mounter()
        with node.client() as client:
            wait_until(lambda: "lost" in _condition(client, target).message)
            client.call("NodePublishVolume", **publish(target, big))
            assert Path(target, "model.bin").read_bytes() == CONTENT
            assert not _condition(client, target).abnormal


def test_a_target_of_which_nothing_is_known_is_shown_again(node: Node, big: Path) -> None:
    """A mounted target whose record is lost is published over, and goes whole."""
    with published(node, big) as target:
        for record in (node.run / "targets").iterdir():
            record.unlink()
        with node.client() as client:
            for _ in range(2):
                client.call("NodePublishVolume", **publish(target, big))
            assert Path(target, "model.bin").read_bytes() == CONTENT
            assert not _condition(client, target).abnormal


def test_the_hints_socket_works_through_the_target(node: Node, big: Path) -> None:
    """A container that gets the volume finds the socket in it, also after the daemon was killed."""
    import json

    with published(node, big) as target:
        wait_until(
            lambda: json.loads(os.getxattr(target, "user.fusefs.socket"))["socket"] is not None
        )
        _kill_mounter(node)
        answer = json.loads(os.getxattr(target, "user.fusefs.socket"))
        assert answer["socket"] == ".fusefs/socket"
