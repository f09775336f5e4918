"""What must hold of every rendering of the chart: functions from objects to violations.

Used by the tests on a sample, and by `python -m tests.helm.matrix` on all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kubernetes_validate

from tests.helm.chart import Object

LABELS = frozenset(
    {
        *(
            f"app.kubernetes.io/{name}"
            for name in ("name", "instance", "version", "component", "part-of", "managed-by")
        ),
        "helm.sh/chart",
    }
)
SELECTOR = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}

CUSTOM = frozenset(
    {"PodMonitor", "PrometheusRule", "SecurityContextConstraints", "Certificate", "Issuer"}
)
"""Kinds that the API server itself does not know: no schema of Kubernetes has them."""

_OPERATED = frozenset({"Dataset", "ThinRuntime", "ThinRuntimeProfile"})
"""Fluid's kinds, in the examples."""

_RESTRICTED_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
"""Of the profile "restricted" of Kubernetes' Pod Security Standards."""

Check = Callable[[Sequence[Object]], Iterator[str]]


def named(item: Object) -> str:
    """Kind and name, for messages."""
    return f"{item['kind']}/{item['metadata']['name']}"


def schema_violations(objects: Sequence[Object], kube: str) -> Iterator[str]:
    """Against the API's own schemas of one version, where a key nobody knows is a mistake."""
    for item in objects:
        if item["kind"] in CUSTOM | _OPERATED:
            continue
        try:
            kubernetes_validate.validate(item, kube, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{named(item)} for {kube}: {error.message}"


def label_violations(objects: Sequence[Object]) -> Iterator[str]:
    """Every object and every pod has all labels, and none is longer than 63 characters."""
    for item in objects:
        metas = [item["metadata"]]
        if template := item.get("spec", {}).get("template"):
            metas.append(template["metadata"])
        for meta in metas:
            labels = meta.get("labels", {})
            if missing := LABELS - labels.keys():
                yield f"{named(item)} lacks the labels {sorted(missing)}"
            if any(len(value) > 63 for value in labels.values()):
                yield f"{named(item)} has a label that is too long"
        if len(item["metadata"]["name"]) > 63:
            yield f"{named(item)} has a name that is too long"


def selector_violations(objects: Sequence[Object]) -> Iterator[str]:
    """Selectors hold what never changes, and fit the pods they are for."""
    for item in objects:
        template = item.get("spec", {}).get("template")
        if template is None:
            continue
        wanted = item["spec"]["selector"]["matchLabels"]
        if set(wanted) != SELECTOR:
            yield f"{named(item)} selects by {sorted(wanted)}"
        if not wanted.items() <= template["metadata"]["labels"].items():
            yield f"{named(item)} does not select its own pods"


def selectors(objects: Sequence[Object]) -> dict[str, Any]:
    """What the API server lets nobody change, by object."""
    found = {}
    for item in objects:
        if item.get("spec", {}).get("template"):
            found[named(item)] = item["spec"]["selector"]
    return found


def pod_specs(objects: Sequence[Object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod there would be: name of its object, specification."""
    for item in objects:
        if item["kind"] == "Pod":
            yield named(item), item["spec"]
        elif template := item.get("spec", {}).get("template"):
            yield named(item), template["spec"]


def containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def restricted_violations(spec: Mapping[str, Any]) -> Iterator[str]:
    """What the profile "restricted" would refuse of a pod."""
    yield from baseline_violations(spec)
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - _RESTRICTED_VOLUMES:
            yield f"volume {volume['name']} is a {kinds.pop()}"
    for container in containers(spec):
        name, own = container["name"], container.get("securityContext", {})
        both = {**pod, **own}
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"
        if not both.get("runAsNonRoot") or both.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"


def baseline_violations(spec: Mapping[str, Any]) -> Iterator[str]:
    """What the profile "baseline" would refuse of a pod."""
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(flag):
            yield f"the pod has {flag}"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a hostPath"
    for container in containers(spec):
        own = container.get("securityContext", {})
        if own.get("privileged"):
            yield f"{container['name']} is privileged"
        if own.get("capabilities", {}).get("add"):
            yield f"{container['name']} adds capabilities"


def pod_violations(objects: Sequence[Object]) -> Iterator[str]:
    """One container of the chart is privileged; the others are restricted but for hostPath."""
    for owner, spec in pod_specs(objects):
        for container in containers(spec):
            where = f"{owner} container {container['name']}"
            context = container.get("securityContext", {})
            if bool(context.get("privileged")) != (container["name"] == "plugin"):
                yield f"{where} has privileged={context.get('privileged')}"
            if not context.get("readOnlyRootFilesystem"):
                yield f"{where} can write to its root"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{where} has no memory limit"
        if spec.get("enableServiceLinks") is not False:
            yield f"{owner} has service links"
        if owner.endswith("-node"):
            continue
        for violation in restricted_violations(spec):
            if not violation.endswith(("hostPath", "hostNetwork")):
                yield f"{owner}: {violation}"


def driver_violations(objects: Sequence[Object]) -> Iterator[str]:
    """One driver name, and the paths that follow from it, wherever they are written."""
    (driver,) = (item["metadata"]["name"] for item in objects if item["kind"] == "CSIDriver")
    for item in objects:
        if item["kind"] == "StorageClass" and item["provisioner"] != driver:
            yield f"{named(item)} is another driver's"
    for owner, spec in pod_specs(objects):
        for container in containers(spec):
            where = f"{owner} container {container['name']}"
            flags = dict(
                arg.removeprefix("--").split("=", 1)
                for arg in container.get("args", [])
                if arg.startswith("--") and "=" in arg
            )
            if flags.get("driver-name", driver) != driver:
                yield f"{where} serves {flags['driver-name']}"
            if container["name"] in ("plugin", "mounter"):
                yield from _path_violations(where, driver, flags, spec, container)
            if container["name"] == "registrar":
                socket = flags["kubelet-registration-path"]
                if not socket.endswith(f"/plugins/{driver}/csi.sock"):
                    yield f"{where} registers {socket}"
        for volume in spec.get("volumes", []):
            if volume.get("csi", {}).get("driver", driver) != driver:
                yield f"{owner} has a volume of another driver"


def _path_violations(
    where: str,
    driver: str,
    flags: Mapping[str, str],
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
) -> Iterator[str]:
    """Run folder and kubelet folder are the host's at the same path; sockets fit into 107 bytes."""
    hosts = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    paths = {m["mountPath"]: hosts.get(m["name"]) for m in container["volumeMounts"]}
    run = flags["run-dir"]
    if run != f"/run/{driver}" or paths.get(run) != run:
        yield f"{where} has the run folder {run}, from {paths.get(run)}"
    if container["name"] == "mounter":
        return
    kubelet = flags["kubelet-dir"]
    if paths.get(kubelet) != kubelet:
        yield f"{where} has the kubelet's folder from {paths.get(kubelet)}"
    endpoint = flags["endpoint"].removeprefix("unix://")
    if endpoint != f"{kubelet}/plugins/{driver}/csi.sock":
        yield f"{where} listens on {endpoint}"
    for socket in (endpoint, f"{kubelet}/plugins_registry/{driver}-reg.sock"):
        if len(socket.encode()) > 107:
            yield f"{where}: the name of the socket {socket} is too long"


CHECKS: tuple[Check, ...] = (
    label_violations,
    selector_violations,
    pod_violations,
    driver_violations,
)


def violations(objects: Sequence[Object], kube: str) -> list[str]:
    """All of the above."""
    found = [violation for check in CHECKS for violation in check(objects)]
    return found + list(schema_violations(objects, kube))
