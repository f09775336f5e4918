"""What `helm test` runs in the cluster, run here against a stand-in for its API server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import certifi
import pytest

from tests.helm.chart import CHART, Object, pick, render
from tests.helm.stub import serving

ALL = CHART / "ci" / "all-features-values.yaml"


def _node(name: str, *drivers: str) -> Object:
    listed = [{"name": driver} for driver in drivers] or None
    return {"metadata": {"name": name}, "spec": {"drivers": listed}}


@contextmanager
def open_api(csinodes: list[Object], running_on: list[str | None]) -> Iterator[str]:
    """The two lists that the hook asks for; to others, and to strangers, 403."""
    pods = [{"spec": {"nodeName": node} if node else {}} for node in running_on]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            selector = parse_qs(url.query).get("labelSelector", [""])[0]
            known = {
                "/apis/storage.k8s.io/v1/csinodes": csinodes,
                "/api/v1/namespaces/fusefs/pods": pods,
            }
            wanted = "app.kubernetes.io/instance=fusefs,app.kubernetes.io/component=node"
            allowed = self.headers["Authorization"] == "Bearer t0ken"
            if url.path not in known or not allowed or selector not in ("", wanted):
                self.send_error(403)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"items": known[url.path]}).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serving(Handler) as url:
        yield url


def _run(tmp_path: Path, objects: list[Object], api: str) -> subprocess.CompletedProcess[str]:
    """The hook's command, with the pod's account and the cluster's name put elsewhere."""
    (tmp_path / "token").write_text("t0ken")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    container = pick(objects, "Pod", "-registration")["spec"]["containers"][0]
    script, *arguments = container["args"]
    script = script.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(tmp_path))
    script = script.replace("https://kubernetes.default.svc", api)
    return subprocess.run(
        [sys.executable, *container["command"][1:], script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("csinodes", "running_on", "said"),
    [
        ([_node("a", "fusefs.csi", "other"), _node("b")], ["a"], ""),
        ([_node("a", "fusefs.csi"), _node("b", "other")], ["a", "b"], "not registered on ['b']"),
        ([_node("a", "fusefs.csi")], [None], "not registered on []"),
        ([], [], "not registered on []"),
    ],
)
def test_registration_is_seen_or_missed(
    csinodes: list[Object],
    running_on: list[str | None],
    said: str,
    tmp_path: Path,
    default_objects: list[Object],
) -> None:
    """The hook succeeds when kubelet knows the driver on each node of the plugin, and only then."""
    with open_api(csinodes, running_on) as api:
        done = _run(tmp_path, default_objects, api)
    assert done.stderr.strip() == said
    assert done.returncode == (1 if said else 0)


def test_an_api_server_that_refuses_fails_the_hook(
    tmp_path: Path, default_objects: list[Object]
) -> None:
    """Without rights there is no success by default."""
    with open_api([], []) as api:
        done = _run(tmp_path, default_objects, f"{api}/elsewhere")
    assert done.returncode == 1
    assert "403" in done.stderr


def test_a_source_to_mount_makes_a_second_hook(default_objects: list[Object]) -> None:
    """With tests.source an unprivileged pod asks the mount of an inline volume."""
    spec = pick(render([ALL]), "Pod", "-mount")["spec"]
    assert spec["volumes"][0]["csi"]["volumeAttributes"]["source"] == "s3://models/llama"
    assert spec["containers"][0]["args"] == ["health", "--ready", "/models"]
    assert not [o for o in default_objects if o["metadata"]["name"].endswith("-test-mount")]
