"""The controller as the chart starts it: without a right, a device, a kubelet or a mounter."""

from __future__ import annotations

import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.csi import UNPRIVILEGED, Client, free_port, mount_capability
from tests.harness.mounted import ROOT, cli_command
from tests.helm.chart import pick, render

END_S = 30.0


@contextmanager
def open_controller() -> Iterator[tuple[Client, int]]:
    """Calls to a controller with the arguments of the chart, and its HTTP port."""
    port = free_port()
    values = ["controller.enabled=true", f"controller.httpPort={port}"]
    spec = pick(render([], sets=values), "Deployment")["spec"]["template"]["spec"]
    (container,) = (c for c in spec["containers"] if c["name"] == "controller")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        arguments = [arg.replace("/csi/", f"{folder}/") for arg in container["args"]]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [*UNPRIVILEGED, *cli_command(), *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NODE_NAME": "node"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        client = Client(Path(folder) / "csi.sock")
        try:
            yield client, port
        finally:
            client.close()
            process.kill()
            process.wait(END_S)


def test_the_controller_makes_volumes_without_any_right() -> None:
    """It answers its probes and makes a volume; there is nothing of a node it would need."""
    with open_controller() as (client, port):
        made = client.call(
            "CreateVolume",
            name="models",
            volume_capabilities=[mount_capability()],
            parameters={"source": "s3://models/llama"},
        )
        assert made.volume.volume_context["source"] == "s3://models/llama"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.status == 200
