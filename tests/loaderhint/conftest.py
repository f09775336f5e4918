"""What tests of the client get: a folder that is taken for a mount, and its daemon."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.hint_server import HintServer, open_hint_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for files."""
    path = tmp_path / "mount"
    path.mkdir()
    return path


@pytest.fixture
def server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> Iterator[HintServer]:
    """A daemon that serves the files of `folder`."""
    with open_hint_server(folder, monkeypatch) as running:
        yield running


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test there are no more threads and descriptors than before."""
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield
    gc.collect()
    left = [thread.name for thread in threading.enumerate() if thread not in threads]
    assert left == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
