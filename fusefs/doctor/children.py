"""Children that do what may hang, and are left behind if they do.

The one idea: no signal helps a process that waits in the kernel for a sick mount, so nothing that
may wait there is done by us; and what a child found before its time was up still counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fusefs

_GIVE_UP_S = 1.0
"""For a killed child to go. One that hangs in the kernel does not, and is not waited for."""

_PACKAGE = str(Path(fusefs.__file__).resolve().parent.parent)

_RUN = (
    "import sys, runpy; sys.path.insert(0, sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Isolated (-I), so that no variable of a stranger's environment says what is imported."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """As whom and with which environment a child runs; None: as ourselves."""

    environment: Mapping[str, str] | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a child wrote, and whether it came to its end in time."""

    output: bytes
    in_time: bool


def start_child(
    module: str,
    arguments: Sequence[str],
    said: bytes,
    circumstances: Circumstances = Circumstances(),
) -> subprocess.Popen[bytes]:
    """Run the main of `module`, with `said` on its standard input. Raises OSError."""
    private = os.memfd_create("fusefs-question")
    try:
        os.write(private, said)
        os.lseek(private, 0, os.SEEK_SET)
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _RUN, _PACKAGE, module, *arguments],
            stdin=private,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=circumstances.environment,
            user=circumstances.uid,
            group=circumstances.gid,
            extra_groups=None if circumstances.uid is None else [],
        )
    finally:
        os.close(private)


def collect(child: subprocess.Popen[bytes], until_s: float) -> Outcome:
    """What it wrote until then (of the monotonic clock); what still runs is killed and left."""
    try:
        output, _ = child.communicate(timeout=max(0.0, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            output, _ = child.communicate(timeout=_GIVE_UP_S)
        except subprocess.TimeoutExpired as error:
            child.returncode = -1  # stuck in the kernel: it ends when the mount does
            output = error.output or b""
        return Outcome(output, False)
    return Outcome(output, True)
