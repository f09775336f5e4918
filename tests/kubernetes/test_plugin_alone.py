"""The plugin as a process without a mounter: what it says of stats, and when a taint goes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.harness.csi import DRIVER, Node, Wrap
from tests.harness.mounted import ROOT
from tests.kubernetes.api_server import open_api_server
from tests.kubernetes.kubelet import Kubelet

LIMIT_S = 60.0
KEY = f"{DRIVER}/not-ready"

ELSEWHERE = """
import sys
from pathlib import Path
from fusefs.cli import main
from fusefs.kubernetes import taint
host, port, account = sys.argv[1:4]
found = taint.ApiServer(host, int(port), Path(account))
taint.api_server_of = lambda environment: found
sys.exit(main(sys.argv[4:]))
"""
"""`fusefs` with a service account that is not where pods have it."""


@contextmanager
def open_plugin(
    *options: str,
    environment: Mapping[str, str] | None = None,
    wrap: Wrap = lambda node, name, command: command,
) -> Iterator[Node]:
    """The plugin alone: nothing can be mounted."""
    root = Path(tempfile.mkdtemp(prefix="fusefs-plugin-")).resolve()
    full = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    node = Node(root, uuid.uuid4().hex, full, options, wrap)
    node.start_plugin()
    assert node.plugin is not None
    try:
        yield node
    except BaseException:
        sys.stderr.write(node.log)
        raise
    finally:
        node.plugin.kill()
        node.plugin.wait(LIMIT_S)
        shutil.rmtree(root)


def _wait_for(node: Node, sentence: str) -> None:
    until = time.monotonic() + LIMIT_S
    while sentence not in node.log:
        assert time.monotonic() < until, f"it never said {sentence!r}"
        time.sleep(0.05)


def test_volume_stats_can_be_left_out() -> None:
    """Kubelet is told of no stats, and so does not ask; who asks all the same learns why."""
    with open_plugin("--no-volume-stats") as node, node.client() as client:
        capabilities = client.call("NodeGetCapabilities").capabilities
        assert [capability.rpc.type for capability in capabilities] == [6]
        fields = {"volume_id": "id", "volume_path": "/some/path"}
        code, sentence = client.refusal("NodeGetVolumeStats", **fields)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "--no-volume-stats" in sentence


@pytest.mark.parametrize("registrar", ["builtin", "none"])
def test_the_taint_goes_after_the_registration(registrar: str, tmp_path: Path) -> None:
    """The real command takes it: told by kubelet, or, with a sidecar, by the CSINode alone."""
    with open_api_server(tmp_path) as stub:
        stub.taints["node-1"] = [{"key": KEY, "effect": "NoExecute"}]
        stub.drivers["node-1"] = [{"name": DRIVER}]

        def elsewhere(node: Node, name: str, command: list[str]) -> list[str]:
            place = ["127.0.0.1", str(stub.port), str(tmp_path)]
            return [sys.executable, "-c", ELSEWHERE, *place, *command[3:]]

        options = (f"--startup-taint={KEY}", f"--registrar={registrar}")
        with open_plugin(*options, wrap=elsewhere) as node:
            if registrar == "builtin":
                kubelet = Kubelet(node)
                _wait_for(node, "goes when kubelet lists")
                assert stub.requests == []
                kubelet.register()
                kubelet.end()
            _wait_for(node, f"took the taint {KEY} from node-1")
            assert stub.taints["node-1"] == []
            assert node.terminate("plugin") == 0


def test_a_pod_without_a_token_still_serves() -> None:
    """What is wrong with the account ends no plugin: the log says it, and volumes go on."""
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    options = (f"--startup-taint={KEY}", "--registrar=none")
    with open_plugin(*options, environment=environment) as node, node.client() as client:
        _wait_for(node, "no token of a service account can be read")
        assert client.call("NodeGetInfo").node_id == "node-1"
        assert len(client.call("NodeGetCapabilities").capabilities) == 3


def test_a_taint_outside_of_a_cluster_is_refused() -> None:
    """Without an API server, or with a key that is none, the command ends with a sentence."""
    for option, sentence in (
        (f"--startup-taint={KEY}", "works in a pod only"),
        ("--startup-taint=a b", "a taint's key is like"),
    ):
        with open_plugin(option, environment={"KUBERNETES_SERVICE_HOST": ""}) as node:
            assert node.plugin is not None
            assert node.plugin.wait(LIMIT_S) == 2
            assert sentence in node.log
