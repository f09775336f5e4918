"""`fusefs health`: the probe of a container that mounts, as Kubernetes and systemd run one.

Alive and ready are two questions. Alive: is the mount there, and does its daemon answer? A restart
helps if not. Ready (`--ready`): does it list its folder, too, so that its store answers? A store's
trouble is no reason to restart a mount, hence never a question of a liveness probe. Whatever the
mount does, the answer comes within `--timeout`, or twice of it with `--ready`.
"""

from __future__ import annotations

import argparse
from typing import Any

from fusefs.cli.preflight import resolve_mountpoint
from fusefs.client import ANSWER_TIMEOUT_S, ask_mount, ask_names
from fusefs.errors import FusefsError
from fusefs.mount import kernel
from fusefs.values import seconds

EXAMPLES = """\
for example:
  fusefs health --ready /mnt/models     startup probe: the mount is there, and its store answers
  fusefs health /mnt/models             liveness probe: the mount is there, and its daemon answers

Exit status 0 if so, else 1 and a sentence. A probe's timeoutSeconds should be three times
--timeout: Python starts, too."""


_TIMEOUT = seconds(0.1, 3600)


def add_health(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `fusefs`."""
    health = commands.add_parser(
        "health",
        help="tell by the exit status whether a mount is well: for probes",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    health.add_argument("mountpoint", metavar="MOUNTPOINT")
    health.add_argument("--ready", action="store_true", help="its store has to answer, too")
    health.add_argument(
        "--timeout", type=_seconds, default=ANSWER_TIMEOUT_S, metavar="SECONDS",
        help=f"for each answer ({ANSWER_TIMEOUT_S:g})",
    )  # fmt: skip
    health.set_defaults(command=_health)


def _health(arguments: argparse.Namespace) -> int:
    mountpoint = resolve_mountpoint(arguments.mountpoint)
    row = kernel.find_mount(mountpoint)
    if row is None or row.fstype != kernel.FSTYPE:
        raise FusefsError(f"{mountpoint} is not a fusefs mount")
    trouble = ask_mount(mountpoint, arguments.timeout).trouble
    if trouble is None and arguments.ready:
        trouble = ask_names(mountpoint, arguments.timeout)
    if trouble is not None:
        raise FusefsError(f"{mountpoint} {trouble}")
    return 0


def _seconds(text: str) -> float:
    try:
        value = _TIMEOUT.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{_TIMEOUT.written}, not {text[:80]!r}") from error
    assert isinstance(value, float)
    return value
