"""Where things are on a node: names of folders, sockets and files, and who may read them.

All state lies below the run folder, a tmpfs of the host: a reboot, which ends every mount, erases
what is known of them. Nothing here is inside a mount.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fusefs.errors import ConfigError

DRIVER_NAME = "fusefs.csi"

MOUNTER_UID = 65534
"""`nobody` in every Linux distribution, and the user of our image."""

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9._-]{0,61}[A-Za-z])?")
"""As csi-sanity has it; the specification wants at most 63 characters in domain name notation."""


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one driver on one node."""

    driver: str
    kubelet: Path
    run: Path

    @property
    def mounts(self) -> Path:
        """One folder for each mount key: where its source is mounted."""
        return self.kubelet / "plugins" / self.driver / "mnt"

    @property
    def registration(self) -> Path:
        """The socket that kubelet looks for."""
        return self.kubelet / "plugins_registry" / f"{self.driver}-reg.sock"

    @property
    def link(self) -> Path:
        """The plugin's socket, to which the mounter connects."""
        return link_of(self.run)

    @property
    def keys(self) -> Path:
        """One folder for each mount key: what it takes to serve it, credentials among it."""
        return self.run / "keys"

    @property
    def targets(self) -> Path:
        """One file for each published target: which volume it shows."""
        return self.run / "targets"

    def mountpoint(self, key: str) -> Path:
        """Where the source of `key` is mounted."""
        return self.mounts / key

    def meeting(self, pod_uid: str, name: str) -> Path:
        """The emptyDir `name` of a pod, where kubelet has it."""
        return self._pod(pod_uid, "volumes") / name

    def meeting_ready(self, pod_uid: str, name: str) -> Path:
        """What kubelet makes when that emptyDir is set up (pkg/volume/emptydir: SetReady)."""
        return self._pod(pod_uid, "plugins") / name / "ready"

    def _pod(self, pod_uid: str, part: str) -> Path:
        return self.kubelet / "pods" / pod_uid / part / "kubernetes.io~empty-dir"

    def target_file(self, target: str) -> Path:
        """What is known of the target at this path."""
        return self.targets / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.json"


def link_of(run: Path) -> Path:
    """The plugin's socket below the run folder."""
    return run / "plugin.sock"


def check_driver_name(name: str) -> str:
    """`name`, if a driver may have it. Raises ConfigError."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"--driver-name {name[:80]!r}: at most 63 letters, digits, '.', '-' and '_', with a"
            " letter at both ends"
        )
    return name
