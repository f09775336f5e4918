"""What a pod with sidecar volumes still lacks: a Pod in, a JSON patch (RFC 6902) out. Pure.

It knows nothing of HTTP or of reviews (`fusefs.kubernetes.webhook`), changes nothing that is there,
and answers the same for a pod that it has seen before: what is present is left alone. The one idea:
each `sidecarVolume` of a volume with `mode: sidecar` needs a container that serves it, in front of
all that read it. A pod is a stranger's: whatever does not fit is refused with a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fusefs.errors import ConfigError

Object = Mapping[str, Any]
Patch = list[dict[str, Any]]

COMMAND = "csi-sidecar"
NAME = "fusefs"
SIDECAR_VOLUME = "fusefs"
"""The emptyDir of a volume that names none."""

RUN_FOLDER = "/run/fusefs"
PORT = 9818
"""Of the first sidecar's probes; containers of a pod share one network, so others count up."""

SIDECARS_MAX = 16
"""Each is a mount with processes and a memory limit of its own: more are a mistake."""

CPU_REQUEST, MEMORY_REQUEST, MEMORY_LIMIT = "500m", "1Gi", "4Gi"
"""As in the examples of the chart; a quarter of the limit is for object bytes."""

CHOSEN_BY_OPENSHIFT = "openshift.io/scc"
"""The annotation of pods whose users come from their namespace's range: any other is refused."""

PROXY = "istio-proxy"
"""Istio's: where its CNI plugin redirects connections, nobody gets out before it runs."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_UNITS = {
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000) ** power for power, unit in enumerate(["", *"kMGTPE"])},
    **{f"{unit}i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}

_RESTRICTED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""Pod Security "restricted"."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What sidecars are made of: whose volumes they serve, and their image."""

    driver: str
    image: str
    pull_policy: str = "IfNotPresent"

    @property
    def label(self) -> str:
        """The label by which a pod asks, with the value "true"."""
        return f"{self.driver}/inject"


def wants_sidecars(pod: Object, recipe: Recipe) -> bool:
    """Whether the pod carries the label. Raises ConfigError."""
    labels = _object(_object(pod, "metadata"), "labels")
    return labels.get(recipe.label) == "true"


def patch_of(pod: Object, recipe: Recipe) -> Patch:
    """What to add to the pod; nothing if all is there. Raises ConfigError."""
    spec = _object(pod, "spec")
    first, others = _objects(spec, "initContainers"), _objects(spec, "containers")
    asked = _asked(spec, recipe.driver)
    present, place = _present(first, others), _place(first)
    for meeting, volume in asked.items():
        if meeting in present:
            served = present[meeting]
            _check_order(first[: served + 1], _text(first[served], "name"), volume)
        else:
            _check_order(first[:place], "the sidecar, which follows the proxy", volume)
    missing = [meeting for meeting in asked if meeting not in present]
    if not missing:
        return []
    wishes = _wishes(pod, recipe.driver)
    folders, sidecars = [], []
    for meeting, name, port in _named(missing, [*first, *others]):
        scratch = f"{name}-tmp"
        if scratch in asked:
            raise ConfigError(f"the volume {scratch} is for temporary files: rename sidecarVolume")
        folders += [meeting, scratch]
        sidecars.append({**_sidecar(recipe, name, meeting, scratch, port), **wishes})
    return [*_folders(spec, folders), *_containers(spec, place, sidecars)]


def _asked(spec: Object, driver: str) -> dict[str, str]:
    """The volumes to be served: by the emptyDir where their sidecar is met, their name."""
    asked: dict[str, str] = {}
    for volume in _objects(spec, "volumes"):
        csi = _object(volume, "csi")
        attributes = _object(csi, "volumeAttributes")
        if csi.get("driver") != driver or attributes.get("mode") != "sidecar":
            continue
        meeting = attributes.get("sidecarVolume", SIDECAR_VOLUME)
        if not isinstance(meeting, str) or _LABEL.fullmatch(meeting) is None:
            raise ConfigError(f"sidecarVolume must be the name of an emptyDir, not {_say(meeting)}")
        if meeting in asked:
            raise ConfigError(
                f"two volumes have the sidecarVolume {meeting}: give each one of its own"
            )
        asked[meeting] = _text(volume, "name")
    if len(asked) > SIDECARS_MAX:
        raise ConfigError(f"the pod has more than {SIDECARS_MAX} volumes with mode: sidecar")
    return asked


def _present(first: Sequence[Object], others: Sequence[Object]) -> dict[str, int]:
    """The sidecars that are there: by what they mount, their place in the init containers."""
    present: dict[str, int] = {}
    for number, container in enumerate([*first, *others]):
        if not _is_sidecar(container):
            continue
        if number >= len(first) or container.get("restartPolicy") != "Always":
            raise ConfigError(
                f"the container {_say(container.get('name'))} runs {COMMAND}, so it must be an init"
                " container with restartPolicy: Always; or leave it out, and it is injected"
            )
        for name in _mounted(container):
            present.setdefault(name, number)
    return present


def _is_sidecar(container: Object) -> bool:
    return any(COMMAND in _texts(container, key) for key in ("command", "args"))


def _check_order(before: Sequence[Object], sidecar: str, volume: str) -> None:
    for container in before:
        if volume in _mounted(container):
            raise ConfigError(
                f"the init container {_say(container.get('name'))} mounts the volume {volume}"
                f" before anybody serves it: it must come after {sidecar}"
            )


def _place(first: Sequence[Object]) -> int:
    """Where sidecars go: before all others, but after the proxy that they may need to get out."""
    for number, container in enumerate(first):
        if container.get("name") == PROXY and container.get("restartPolicy") == "Always":
            return number + 1
    return 0


def _named(missing: Sequence[str], there: Sequence[Object]) -> list[tuple[str, str, int]]:
    """For each missing sidecar: where it is met, its name and its port."""
    ours = {_text(container, "name"): _is_sidecar(container) for container in there}
    ports = {port for container in there for port in _ports(container)}
    named = []
    for meeting in missing:
        name = f"{NAME}-{meeting}" if ours.get(NAME) else NAME
        if name in ours:
            raise ConfigError(
                f"the pod has a container {name} that is no sidecar of ours: call it otherwise"
            )
        if _LABEL.fullmatch(f"{name}-tmp") is None:
            raise ConfigError(f"the sidecarVolume {meeting} is too long to name a container by")
        port = next(number for number in range(PORT, 1 << 16) if number not in ports)
        ours[name] = True
        ports.add(port)
        named.append((meeting, name, port))
    return named


def _ports(container: Object) -> list[int]:
    """What a container says it listens on."""
    said = [port.get("containerPort") for port in _objects(container, "ports")]
    flags = re.findall(r"--http-port[= ]([0-9]{1,5})\b", " ".join(_texts(container, "args")))
    return [port for port in said if isinstance(port, int)] + [int(flag) for flag in flags]


def _wishes(pod: Object, driver: str) -> dict[str, Any]:
    """What the annotations say of sidecars: `resources`, their user, a secret for `envFrom`."""
    annotations = _object(_object(pod, "metadata"), "annotations")

    def quantity(name: str, default: str) -> tuple[str, Fraction]:
        text = annotations.get(f"{driver}/{name}", default)
        found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
        if found is None or not (size := Fraction(found[1]) * _UNITS[found[2] or ""]):
            raise ConfigError(
                f"the annotation {driver}/{name} must be a quantity like {default}, not"
                f" {_say(text)}"
            )
        return text, size

    limit, limit_bytes = quantity("memory-limit", MEMORY_LIMIT)
    request, request_bytes = quantity("memory-request", MEMORY_REQUEST)
    if request_bytes > limit_bytes:
        if f"{driver}/memory-request" in annotations:
            raise ConfigError(
                f"the annotation {driver}/memory-request is more than the limit {limit}: lower it,"
                f" or raise {driver}/memory-limit"
            )
        request = limit
    cpu, _ = quantity("cpu-request", CPU_REQUEST)
    wishes: dict[str, Any] = {
        "resources": {"requests": {"cpu": cpu, "memory": request}, "limits": {"memory": limit}}
    }
    user = {} if CHOSEN_BY_OPENSHIFT in annotations else {"runAsUser": 65534, "runAsGroup": 65534}
    wishes["securityContext"] = {**user, **_RESTRICTED}
    secret = annotations.get(f"{driver}/env-secret")
    if secret is not None:
        if not isinstance(secret, str) or _SUBDOMAIN.fullmatch(secret) is None:
            raise ConfigError(
                f"the annotation {driver}/env-secret must be the name of a Secret, not"
                f" {_say(secret)}"
            )
        wishes["envFrom"] = [{"secretRef": {"name": secret}}]
    return wishes


def _sidecar(recipe: Recipe, name: str, meeting: str, scratch: str, port: int) -> dict[str, Any]:
    """The container, as in the chart's example sidecar.yaml; fits Pod Security "restricted"."""
    return {
        "name": name,
        "image": recipe.image,
        "imagePullPolicy": recipe.pull_policy,
        "restartPolicy": "Always",
        "args": [COMMAND, f"--run-dir={RUN_FOLDER}", f"--http-port={port}"],
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the container's own emptyDir
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": port},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 600,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": port},
            "periodSeconds": 30,
            "timeoutSeconds": 5,
            "failureThreshold": 4,
        },
        "volumeMounts": [
            {"name": meeting, "mountPath": RUN_FOLDER},
            {"name": scratch, "mountPath": "/tmp"},  # noqa: S108 - the same
        ],
    }


def _folders(spec: Object, names: Sequence[str]) -> Patch:
    """The emptyDirs that are missing."""
    there = {_text(volume, "name"): volume for volume in _objects(spec, "volumes")}
    added = []
    for name in names:
        if name not in there:
            folder = {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
            added.append({"op": "add", "path": "/spec/volumes/-", "value": folder})
        elif "emptyDir" not in there[name]:
            raise ConfigError(f"the volume {name} must be an emptyDir: the sidecar is met there")
    return added


def _containers(spec: Object, place: int, sidecars: Sequence[Object]) -> Patch:
    """The sidecars at this place among the init containers, in their order."""
    if spec.get("initContainers") is None:
        return [{"op": "add", "path": "/spec/initContainers", "value": list(sidecars)}]
    return [
        {"op": "add", "path": f"/spec/initContainers/{number}", "value": sidecar}
        for number, sidecar in enumerate(sidecars, place)
    ]


def _mounted(container: Object) -> list[str]:
    return [_text(mount, "name") for mount in _objects(container, "volumeMounts")]


def _object(holder: Object, key: str) -> Object:
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} of the pod must be an object")
    return value


def _objects(holder: Object, key: str) -> list[Object]:
    value = holder.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{key} of the pod must be a list of objects")
    return value


def _texts(holder: Object, key: str) -> list[str]:
    value = holder.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} of the pod must be a list of texts")
    return value


def _text(holder: Object, key: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{key} of the pod must be a text")
    return value


def _say(value: object) -> str:
    """A stranger's value for a sentence: on one line, and short."""
    return ascii(value)[:80] if isinstance(value, (str, int, float, type(None))) else "that"
