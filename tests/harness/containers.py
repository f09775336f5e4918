"""Containers of the kinds a node has, made by runc: plugin, mounter, and applications.

Their root is a bare folder; what a program needs of this machine (system, interpreter, repository)
is bound into it read-only. The one idea: what Kubernetes would write into a container's
configuration is written here by hand (capabilities, user, propagation, memory), and nothing more
is granted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.cgroup import Cgroup
from tests.harness.mounted import ROOT

RUNC_TIMEOUT_S = 60.0

OOM_SCORE_ADJUSTMENT = 999
"""What Kubernetes gives a pod that requests little of the memory it is limited to."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")

_CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
    """
"""By their numbers, <linux/capability.h>; runc 1.1 knows these and a few newer ones."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder of the host inside a container. `propagation` is none, rslave or rshared."""

    source: str
    destination: str
    read_only: bool = False
    propagation: str = "rprivate"


@dataclass(frozen=True, slots=True)
class Container:
    """What runc is told of one container."""

    folder: Path
    name: str = field(default_factory=lambda: f"fusefs-test-{uuid.uuid4().hex[:12]}")

    @property
    def command(self) -> list[str]:
        """Runs it in front, until its process 1 ends."""
        state = str(self.folder / "state")
        return ["runc", "--root", state, "run", "--bundle", str(self.folder), self.name]

    @property
    def cgroup(self) -> Cgroup:
        """Its memory cgroup, as long as it runs."""
        first = Path("/sys/fs/cgroup/memory")
        if first.is_dir():
            return Cgroup(first / self.name, 1)
        return Cgroup(Path("/sys/fs/cgroup") / self.name, 2)

    def remove(self) -> None:
        """End it if it runs, and let runc forget it; that it is gone is fine."""
        subprocess.run(
            ["runc", "--root", str(self.folder / "state"), "delete", "--force", self.name],
            capture_output=True,
            timeout=RUNC_TIMEOUT_S,
            check=False,
        )


def make_container(
    folder: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    volumes: Sequence[Volume] = (),
    uid: int = 65534,
    privileged: bool = False,
    memory_bytes: int | None = None,
) -> Container:
    """Write the configuration of a container into `folder`."""
    container = Container(folder)
    (folder / "rootfs").mkdir(parents=True)
    (folder / "rootfs").chmod(0o755)
    capabilities = _own_capabilities() if privileged else []
    sets = ("bounding", "effective", "permitted")
    resources: dict[str, Any] = {}
    if privileged:
        resources["devices"] = [{"allow": True, "access": "rwm"}]
    if memory_bytes is not None:
        resources["memory"] = {"limit": memory_bytes, "swap": memory_bytes}
    configuration = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": uid},
            "args": list(arguments),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(sets, capabilities),
            "noNewPrivileges": True,
            "oomScoreAdj": 0 if privileged else OOM_SCORE_ADJUSTMENT,
        },
        "root": {"path": "rootfs", "readonly": not privileged},
        "mounts": _mounts(volumes, privileged),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "resources": resources,
            "cgroupsPath": f"/{container.name}",
            "rootfsPropagation": "shared" if privileged else "private",
        },
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    return container


def _own_capabilities() -> list[str]:
    """All that we have ourselves: what `privileged: true` gives where nothing holds us back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    return [f"CAP_{name}" for bit, name in enumerate(_CAPABILITIES.split()) if held >> bit & 1]


def _mounts(volumes: Sequence[Volume], privileged: bool) -> list[dict[str, Any]]:
    system = [path for path in _SYSTEM if os.path.exists(path)]
    bound = [*system, sys.base_prefix, sys.prefix, str(ROOT)]
    # Outer folders first: runc mounts in this order, and /usr may hold the interpreter.
    outer = [path for path in dict.fromkeys(bound) if not _is_inside(path, bound)]
    rows: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _tmpfs("/dev"),
        _bind(Volume("/sys", "/sys", read_only=not privileged, propagation="rslave")),
        _tmpfs("/tmp"),
    ]
    if privileged:
        rows[1] = _bind(Volume("/dev", "/dev", propagation="rslave"))
    rows += [_bind(Volume(os.path.realpath(path), path, read_only=True)) for path in outer]
    return rows + [_bind(volume) for volume in volumes]


def _is_inside(path: str, others: Sequence[str]) -> bool:
    return any(other != path and Path(path).is_relative_to(other) for other in others)


def _tmpfs(path: str) -> dict[str, Any]:
    options = ["nosuid", "mode=1777" if path == "/tmp" else "mode=755", "size=64m"]
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


def _bind(volume: Volume) -> dict[str, Any]:
    options = ["rbind", volume.propagation, *(["ro"] if volume.read_only else [])]
    return {
        "destination": volume.destination,
        "type": "bind",
        "source": volume.source,
        "options": options,
    }
