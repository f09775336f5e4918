"""The readers on plain folders: each tells right bytes from wrong ones."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.bench.application import READERS
from tests.bench.content import FOLDERS, Sizes
from tests.bench.job import Job
from tests.bench.processes import run_limited
from tests.bench.scenarios import SCENARIOS, Scenario

SIZES = Sizes(shards=2, shard_bytes=3 << 20, objects=5)
BY_READER = {scenario.reader: scenario for scenario in SCENARIOS if scenario.name != "ranks8"}
"""One scenario of each reader; four ranks are as good as eight."""
RANKS_LIMIT_S = 60.0
READ = sorted(BY_READER)


class _Origin(BaseHTTPRequestHandler):
    """Answers `/.again`, as nginx does."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined] # ours, set below
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    """A port that takes marks, and the paths it was asked for."""
    server = HTTPServer(("127.0.0.1", 0), _Origin)
    paths: list[str] = []
    server.asked = paths  # type: ignore[attr-defined] # handed to the handler
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], paths
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[[Scenario], Job]:
    """Write a scenario's folder twice, as the mount and as the originals."""

    def make(scenario: Scenario) -> Job:
        originals = tmp_path / "originals"
        names = FOLDERS[scenario.folder](originals, SIZES)
        directory = tmp_path / "mounted"
        shutil.copytree(originals, directory)
        return Job(str(directory), str(originals), "", list(names), 0, 1, ranks=scenario.ranks)

    return make


def _run(reader: str, job: Job) -> dict[str, Any]:
    if reader == "ranks":
        # It forks, which is for a process of its own: this one has threads.
        command = [sys.executable, "-m", "tests.bench.application", reader, json.dumps(asdict(job))]
        answer: dict[str, Any] = json.loads(run_limited(command, RANKS_LIMIT_S, lambda: None))
        return answer
    module, function = READERS[reader]
    told: dict[str, Any] = getattr(importlib.import_module(module), function)(job)
    return told


@pytest.mark.parametrize("reader", READ)
def test_right_bytes_are_right(
    reader: str, make_job: Callable[[Scenario], Job], asked: tuple[int, list[str]]
) -> None:
    """On a faithful folder no reader complains, and the clock has run."""
    port, paths = asked
    told = _run(reader, replace(make_job(BY_READER[reader]), marks=port))
    assert told["wrong"] == []
    assert told["seconds"] > 0
    assert paths == (["/.again"] if reader in ("second", "small", "list") else [])


@pytest.mark.parametrize("reader", READ)
def test_wrong_bytes_are_told(
    reader: str, make_job: Callable[[Scenario], Job], asked: tuple[int, list[str]]
) -> None:
    """On a folder with other content every reader complains."""
    job = replace(make_job(BY_READER[reader]), marks=asked[0])
    for path in Path(job.directory).iterdir():
        _spoil(reader, path)
    assert _run(reader, job)["wrong"] != []


def _spoil(reader: str, path: Path) -> None:
    """Change what this reader looks at, such that the file can still be opened."""
    content = path.read_bytes()
    if reader == "headers":
        # The same length, another name of a tensor.
        changed = content.replace(b"mlp.down_proj", b"mlp.dawn_proj")
    elif reader == "list":
        changed = content + b"x"
    elif path.suffix == ".safetensors" and reader != "ttfb":
        head = 8 + int.from_bytes(content[:8], "little")
        changed = content[:head] + bytes(byte ^ 1 for byte in content[head:])
    elif path.suffix == ".bin" and reader == "torch":
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    elif path.suffix == ".json" and reader != "small":
        changed = content
    else:
        changed = bytes(byte ^ 1 for byte in content)
    path.write_bytes(changed)
