"""Pods for the tests of the webhook: as users write them, reviewed, and changed by a patch."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from fusefs.kubernetes.injection import Recipe

Pod = dict[str, Any]

DRIVER = "fusefs.csi"
IMAGE = "registry.example.com/fusefs:0.1.0"
RECIPE = Recipe(DRIVER, IMAGE)


def volume(name: str = "models", **attributes: str) -> Pod:
    """An inline volume that a sidecar is to serve."""
    said = {"source": "s3://models/llama", "mode": "sidecar", **attributes}
    return {"name": name, "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": said}}


def container(name: str = "reader", mounts: str = "models", **fields: Any) -> Pod:
    """A container that reads a volume, "restricted"."""
    return {
        "name": name,
        "image": "busybox",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": mounts, "mountPath": "/models", "readOnly": True}],
        **fields,
    }


def sidecar(name: str = "fusefs", meeting: str = "fusefs", **fields: Any) -> Pod:
    """A sidecar that somebody wrote by hand."""
    return container(
        name,
        meeting,
        **{"restartPolicy": "Always", "args": ["csi-sidecar", "--http-port=9818"], **fields},
    )


def pod(*volumes: Pod, annotations: Any = None, **spec: Any) -> Pod:
    """A pod with the label that asks."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "reader",
            "namespace": "inference",
            "labels": {f"{DRIVER}/inject": "true"},
            **({} if annotations is None else {"annotations": annotations}),
        },
        "spec": {
            "containers": [container()],
            "volumes": list(volumes) or [volume()],
            **spec,
        },
    }


def review(item: Any, **fields: Any) -> Pod:
    """What the API server asks about an object that is being made."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "operation": "CREATE",
            "object": item,
            **fields,
        },
    }


def patched(item: Pod, patch: list[dict[str, Any]]) -> Pod:
    """The object after the patch: "add" of RFC 6902, into objects and lists. Raises on others."""
    whole: Any = copy.deepcopy(item)
    for step in patch:
        assert step.keys() == {"op", "path", "value"}
        assert step["op"] == "add"
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]
        ]
        place = whole
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            number = len(place) if last == "-" else int(last)
            assert 0 <= number <= len(place)
            place.insert(number, step["value"])
        else:
            place[last] = step["value"]
    assert isinstance(whole, dict)
    return whole


def patch_in(answer: bytes) -> list[dict[str, Any]]:
    """The patch that an AdmissionReview brings; empty if there is none."""
    response = json.loads(answer)["response"]
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    steps: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"], validate=True))
    return steps
