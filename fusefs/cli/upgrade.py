"""`fusefs upgrade`: have a mount go on with the code that is installed now.

The keeper does it (`fusefs.mount.renewal`); here it is asked to, by a signal, and the mount's own
status tells what became of it.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from fusefs.cli.terminal import say
from fusefs.client import ask_mount, open_processes
from fusefs.errors import FusefsError

UPGRADE_TIMEOUT_S = 240.0
"""A keeper waits for up to 180 s for reads in hand where the kernel cannot send them again; else a
second is usual."""

ASK_INTERVAL_S = 0.1


def upgrade_mount(mountpoint: str) -> None:
    """Upgrade one mount. Raises FusefsError with one sentence; then it goes on as it was."""
    stats = ask_mount(mountpoint).stats
    if stats is None:
        raise FusefsError(f"{mountpoint} does not answer; its keeper replaces a daemon that hangs")
    before = stats.get("upgrades")
    if not isinstance(before, dict):
        raise FusefsError(f"{mountpoint} is of a fusefs that cannot be upgraded: mount anew")
    with open_processes([stats["pids"]["keeper"]]) as keeper:
        if not keeper:
            raise FusefsError(
                f"{mountpoint} has lost its keeper and cannot be upgraded: mount anew"
            )
        try:
            signal.pidfd_send_signal(keeper[0], signal.SIGUSR1)
        except PermissionError as error:
            raise FusefsError(f"{mountpoint} is another user's mount") from error
        after = _wait_until_told(mountpoint, before)
    if after["upgrades"]["done"] == before["done"]:
        raise FusefsError(str(after["upgrades"]["why_refused"]))
    say([f"{stats['version']} → {after['version']}"])


def _wait_until_told(mountpoint: str, before: dict[str, Any]) -> dict[str, Any]:
    """The status once it says that an upgrade was done, or refused."""
    until = time.monotonic() + UPGRADE_TIMEOUT_S
    while time.monotonic() < until:
        stats = ask_mount(mountpoint).stats
        if stats is not None and stats["upgrades"] != before:
            return stats
        time.sleep(ASK_INTERVAL_S)
    raise FusefsError(
        f"{mountpoint} was not upgraded within {UPGRADE_TIMEOUT_S:.0f} s; see the log"
    )
