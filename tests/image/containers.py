"""Containers of the image under runc, as a kubelet's runtime would run them.

Each is a bundle: the image's root, read-only, and a config.json with the security context of a pod.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNC_TIMEOUT_S = 60.0

# fmt: off
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)
# fmt: on
"""By number, as <linux/capability.h> has them."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A volume: a folder of the host, where it is mounted, and how mounts in it spread."""

    source: Path
    target: str
    propagation: str = "rprivate"
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What a pod says of a container. Unprivileged means what the profile "restricted" means."""

    binds: Sequence[Bind] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    privileged: bool = False
    user: int = 65534


class Image:
    """An unpacked image: its root and its configuration."""

    def __init__(self, root: Path, config: Mapping[str, Any], work: Path) -> None:
        self.root = root
        self._config = config
        self.work = work

    def start(self, arguments: Sequence[str], context: Context) -> Container:
        """Start a container; its output goes to a file. Nobody waits for anything."""
        name = f"fusefs-image-{uuid.uuid4().hex[:12]}"
        bundle = self.work / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._spec(bundle, arguments, context)))
        log = (bundle / "log").open("wb")
        process = subprocess.Popen(
            ["runc", "run", "--bundle", str(bundle), name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        return Container(name, bundle / "log", process)

    def run(self, arguments: Sequence[str], context: Context) -> tuple[int, str]:
        """Run a container to its end: exit status and output."""
        with self.open(arguments, context) as container:
            return container.process.wait(RUNC_TIMEOUT_S), container.output()

    @contextmanager
    def open(self, arguments: Sequence[str], context: Context) -> Iterator[Container]:
        """A container that is gone when the context ends."""
        container = self.start(arguments, context)
        try:
            yield container
        finally:
            container.remove()

    def _spec(self, bundle: Path, arguments: Sequence[str], context: Context) -> dict[str, Any]:
        subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        capabilities = _own_capabilities() if context.privileged else []
        sets = ("bounding", "effective", "permitted")
        environment = [f"{name}={value}" for name, value in context.environment.items()]
        spec["process"].update(
            args=[*self._config["Entrypoint"], *arguments],
            env=[*self._config["Env"], *environment],
            user={"uid": context.user, "gid": context.user},
            capabilities=dict.fromkeys(sets, capabilities),
            noNewPrivileges=not context.privileged,
            terminal=False,
        )
        spec["root"] = {"path": str(self.root), "readonly": True}
        spec["mounts"] += [
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            *(_mount(bind) for bind in context.binds),
        ]
        linux = spec["linux"]
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"]
        if context.privileged:
            linux["rootfsPropagation"] = "rshared"
            linux["maskedPaths"] = linux["readonlyPaths"] = []
            linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
            linux["devices"] = [
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}
            ]
        return spec


class Container:
    """A container that was started."""

    def __init__(self, name: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self._log = log

    def output(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as a probe does."""
        return subprocess.run(
            ["runc", "exec", self.name, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUNC_TIMEOUT_S,
            check=False,
        )

    def end(self, signal: str) -> int:
        """Send its first process a signal and wait; the exit status."""
        subprocess.run(["runc", "kill", self.name, signal], check=True, timeout=RUNC_TIMEOUT_S)
        return self.process.wait(RUNC_TIMEOUT_S)

    def remove(self) -> None:
        """Make sure that nothing of it is left."""
        subprocess.run(
            ["runc", "delete", "--force", self.name],
            stderr=subprocess.DEVNULL,  # mostly it has ended, and says so
            check=False,
            timeout=RUNC_TIMEOUT_S,
        )
        self.process.wait(RUNC_TIMEOUT_S)


def _mount(bind: Bind) -> dict[str, Any]:
    options = ["rbind", bind.propagation, *(["ro"] if bind.read_only else [])]
    return {
        "destination": bind.target,
        "type": "bind",
        "source": str(bind.source),
        "options": options,
    }


def _own_capabilities() -> list[str]:
    """All capabilities that we have: a runtime inside a container has not got them all to give."""
    status = Path("/proc/self/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if "CapBnd" in line)
    return [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
