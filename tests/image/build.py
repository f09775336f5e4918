"""Builds the image from Debian's packages and PyPI's alone: no registry, no daemon.

mmdebstrap makes the base, buildah the image, both in a store of their own, so that nothing of the
machine's own images is touched. What is built already in a folder is used again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helm.chart import ROOT

BASE = "localhost/fusefs-base:bookworm"
IMAGE = "localhost/fusefs:check"

BUILD_TIMEOUT_S = 1800.0
"""It takes three minutes on two idle cores; cores may be busy and mirrors slow."""


class Builder:
    """Buildah with a store below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the store. Its driver is the one that needs nothing of the kernel."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._storage.write_text(
            "[storage]\n"
            'driver = "vfs"\n'
            f'graphroot = "{self._folder / "graph"}"\n'
            f'runroot = "{self._folder / "run"}"\n'
        )

    def base(self) -> None:
        """Make the base image, unless it is there."""
        if not self._has(BASE):
            self._run("sh", "helm/image/base.sh", BASE)

    def image(self) -> None:
        """Build the image."""
        options = ["--network", "host"]
        # Whoever's pip trusts an authority of their own: it must do so in there, too.
        if authority := os.environ.get("PIP_CERT"):
            pip = self._folder / "pip.conf"
            pip.write_text("[global]\ncert = /etc/fusefs-pip.pem\n")
            options += ["--volume", f"{authority}:/etc/fusefs-pip.pem:ro"]
            options += ["--volume", f"{pip}:/etc/pip.conf:ro"]
        self._run("sh", "helm/image/build.sh", IMAGE, *options, BASE_IMAGE=BASE, BUILDER="buildah")

    def size_bytes(self) -> Mapping[str, int]:
        """What base and image take, unpacked."""
        sizes = {}
        for name in (BASE, IMAGE):
            text = self._read("buildah", "images", "--json", name)
            sizes[name] = _parse_size(json.loads(text)[0]["size"])
        return sizes

    def config(self) -> dict[str, Any]:
        """The image's configuration: entrypoint, environment, user, labels."""
        inspected = json.loads(self._read("buildah", "inspect", "--type", "image", IMAGE))
        config: dict[str, Any] = inspected["OCIv1"]["config"]
        return config

    def unpack(self) -> Path:
        """The image's root as a folder; it stays until the store goes."""
        container = self._read("buildah", "from", "--pull-never", IMAGE).strip()
        return Path(self._read("buildah", "mount", container).strip())

    @property
    def _storage(self) -> Path:
        return self._folder / "storage.conf"

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(self._storage),
            "BUILDAH_ISOLATION": "chroot",
        }

    def _has(self, name: str) -> bool:
        done = subprocess.run(
            ["buildah", "images", "--quiet", name],
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0 and bool(done.stdout.strip())

    def _run(self, *command: str, **environment: str) -> None:
        subprocess.run(
            command,
            cwd=ROOT,
            env={**self._environment(), **environment},
            stdin=subprocess.DEVNULL,
            timeout=BUILD_TIMEOUT_S,
            check=True,
        )

    def _read(self, *command: str) -> str:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=True,
        ).stdout


def _parse_size(text: str) -> int:
    number, unit = text.split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])
