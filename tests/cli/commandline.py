"""Runs the command line as its users do: a process, its exit status, its one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

TIMEOUT_S = 60.0
"""No command takes longer, whatever hangs: this is what the tests of hanging mounts rely on."""

_MOUNT8 = "import sys; from fusefs.cli import main_for_mount8; sys.exit(main_for_mount8())"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """What it complained of; fails unless that is exactly one line of the agreed form."""
        assert self.stderr.startswith("fusefs: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        assert self.stderr.endswith("\n")
        return self.stderr.removeprefix("fusefs: ").rstrip("\n")


def run_fusefs(
    *arguments: str | Path,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> Ended:
    """Run `fusefs ARGUMENTS`, through `prefix` if other circumstances are wanted."""
    return _run([*prefix, sys.executable, "-m", "fusefs.cli"], arguments, environ, folder)


def run_mount8(*arguments: str | Path) -> Ended:
    """Run `mount.fusefs ARGUMENTS` as mount(8) does."""
    return _run([sys.executable, "-c", _MOUNT8], arguments, None, ROOT)


def _run(
    command: Sequence[str],
    arguments: Sequence[str | Path],
    environ: Mapping[str, str] | None,
    folder: Path,
) -> Ended:
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
