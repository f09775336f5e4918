"""What probes and Prometheus are told, and that nothing grows with use."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusefs.kubernetes.http import PodServer, serve_http
from tests.harness.csi import Client, Node, mount_capability, open_node
from tests.harness.weed import choose_ports

ROUNDS = 5
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def node(model: Path) -> Iterator[Node]:
    """Plugin and mounter with HTTP ports."""
    first, second = choose_ports(2)
    with open_node(f"--file-root={model}", http_ports=(first, second)) as node:
        yield node


LOOPBACK = "0" * 31 + "1 "
"""::1, as the kernel lists it."""


def _get(port: int, path: str) -> tuple[int, str]:
    until = time.monotonic() + TIMEOUT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except ConnectionRefusedError:
            assert time.monotonic() < until, "nobody listens"
            time.sleep(0.1)
        finally:
            connection.close()


def _publish(client: Client, target: str, attributes: dict[str, str]) -> None:
    fields: dict[str, Any] = {
        "volume_id": "pages",
        "target_path": target,
        "volume_capability": mount_capability(),
        "volume_context": attributes,
    }
    client.call("NodePublishVolume", **fields)


def test_both_processes_are_healthy(node: Node) -> None:
    """/healthz of plugin and mounter is 200; other paths are 404."""
    for port in node.http_ports:
        assert _get(port, "/healthz") == (200, "ok\n")
        assert _get(port, "/nothing")[0] == 404


def test_metrics_tell_of_calls_and_mounts(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """The plugin counts calls and mounts; the mounter shows its daemons' counters by source."""
    target = node.target()
    for _ in range(2):
        _publish(client, target, attributes)
    page = _get(node.http_ports[0], "/metrics")[1]
    assert 'fusefs_csi_calls_total{method="NodePublishVolume",code="OK"} 2' in page
    assert 'fusefs_csi_republish_total{result="renewed"} 1' in page
    assert "fusefs_csi_source_mounts 1" in page
    assert "fusefs_csi_mounter_connected 1" in page
    page = _get(node.http_ports[1], "/metrics")[1]
    assert "fusefs_mounter_connected 1" in page
    assert f'source="{attributes["source"]}"}} 0' in page
    client.call("NodeUnpublishVolume", volume_id="pages", target_path=target)
    assert "fusefs_csi_source_mounts 0" in _get(node.http_ports[0], "/metrics")[1]


def test_pages_are_there_by_both_families() -> None:
    """Clusters have IPv4, IPv6 or both: whatever this machine can, by one socket."""
    assert (PodServer.address_family == socket.AF_INET6) is socket.has_dualstack_ipv6()
    server = serve_http(0, lambda: None, lambda: "", lambda: "not yet")
    try:
        port = server.server_address[1]
        assert _get(port, "/healthz") == (200, "ok\n")
        assert _get(port, "/readyz") == (503, "not yet\n")
        addresses = Path("/proc/net/if_inet6")
        if addresses.exists() and LOOPBACK in addresses.read_text():
            with socket.create_connection(("::1", port), timeout=10) as connection:
                connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert connection.recv(64).startswith(b"HTTP/1.0 200")
    finally:
        server.shutdown()
        server.server_close()


def test_nothing_grows_with_use(node: Node, client: Client, attributes: dict[str, str]) -> None:
    """Publishing again and again leaves no descriptor open, and the plugin starts no process."""
    assert node.plugin is not None
    counts = []
    for _ in range(ROUNDS):
        target = node.target()
        _publish(client, target, attributes)
        client.call("NodeUnpublishVolume", volume_id="pages", target_path=target)
        counts.append(len(os.listdir(f"/proc/{node.plugin.pid}/fd")))
    assert counts[-1] <= counts[0]
    threads = Path(f"/proc/{node.plugin.pid}/task").iterdir()
    assert [thread for thread in threads if (thread / "children").read_text()] == []
