"""Runs an engine in its own environment, on a folder, with or without our plugins; reads its words.

The tests run in the environment of the tests, since they mount; the engines in `.venv-engines`,
which `make test-engines` installs. The one idea: nothing of ours is installed there. A folder with
the entry points of `pyproject.toml` on PYTHONPATH is a plugin to both engines, and taking it away
leaves them as they were released.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
PYTHON = ROOT / ".venv-engines" / "bin" / "python"

RUN_TIMEOUT_S = 240.0
"""An engine takes 8 to 45 s on two idle cores."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_PLUGINS": "loaderhint",  # not the two that vLLM ships
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
}
"""For engines on a machine without a GPU and without a hub."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine said: its tokens, and the lines of loaderhint's log of all its processes."""

    tokens: list[int]
    log: list[str]

    def lines(self, text: str) -> list[str]:
        """The lines of the log that have this in them."""
        return [line for line in self.log if text in line]


def write_plugin(folder: Path) -> Path:
    """Write what an installation leaves of our entry points, and return the folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / "fusefs-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fusefs\nVersion: 0\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")
    return folder


def run_script(script: str, *arguments: str, environment: dict[str, str], log: Path) -> str:
    """Run a script of this folder in the engines' environment; returns its stdout and stderr.

    Ends every process of it, whatever happens. Raises AssertionError with the output if it fails.
    """
    assert PYTHON.exists(), "no environment of the engines: run make test-engines"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("w+") as output:
        process = subprocess.Popen(
            [str(PYTHON), str(HERE / script), *arguments],
            cwd=log.parent,
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its workers can be ended with it
        )
        try:
            status = process.wait(RUN_TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text("utf-8", "replace")
    assert status == 0, f"{script} {arguments}: exit {status}\n{text[-6000:]}"
    return text


def generate(
    engine: str,
    folder: Path,
    work: Path,
    *,
    plugin: Path | None = None,
    **options: Any,
) -> Said:
    """Load the model in `folder` with an engine and generate; `options` are its constructor's."""
    log = work / "loaderhint.log"
    log.write_text("")
    paths = [HERE / "standins", *([plugin, ROOT] if plugin else [])]
    environment = {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "ENGINES_TEST_LOG": str(log),
        "VLLM_CACHE_ROOT": str(work / "cache"),
    }
    if engine == "sglang":
        environment["SGLANG_USE_CPU_ENGINE"] = "1"
    text = run_script(
        "generate.py",
        engine,
        str(folder),
        json.dumps(options),
        environment=environment,
        log=work / "engine.log",
    )
    (line,) = [line for line in text.splitlines() if line.startswith("TOKENS ")]
    return Said(json.loads(line.removeprefix("TOKENS ")), log.read_text().splitlines())
