"""A node for the tests of one module, and something to publish on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.csi import Client, Node, open_node

CONTENT = bytes(range(256)) * 8192
"""2 MiB: two blocks, and no two neighbouring bytes alike."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file, readable for the mounter, as the source of volumes."""
    folder = tmp_path_factory.mktemp("models", numbered=True)
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o755)  # pytest makes them 0700: the mounter is nobody
    (folder / "model.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture(scope="module")
def node(model: Path) -> Iterator[Node]:
    """Plugin and mounter; afterwards nothing of them is left."""
    with open_node(f"--file-root={model}") as node:
        yield node


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[Client]:
    """Calls to the plugin of that node."""
    with node.client() as client:
        yield client


@pytest.fixture
def attributes(model: Path) -> dict[str, str]:
    """What a volume of that folder says."""
    return {"source": f"file://{model}"}
