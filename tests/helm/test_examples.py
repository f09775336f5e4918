"""The examples: valid for every Kubernetes, no more rights than they need, and words we know."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fusefs.cli.commands import argument_parser
from fusefs.cli.fluid import CREDENTIALS, read_fluid
from fusefs.cli.resolve import resolve_config
from fusefs.kubernetes.attributes import POD_UID, SIDECAR, parse_volume
from fusefs.mount.kernel import FSTYPE
from tests.helm.chart import CHART, KUBERNETES, Object, load_objects, pick
from tests.helm.checks import (
    baseline_violations,
    containers,
    named,
    pod_specs,
    restricted_violations,
    schema_violations,
)

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
DRIVER = "fusefs.csi"

ENGINES = {"vllm", "sglang"}
"""Their images want to be root; what they may do besides is nothing."""
PRIVILEGED = {"sidecar-privileged": {"fusefs"}}
"""The containers that have to be, by example."""


def _name(path: Path) -> str:
    return path.stem


def load(path: Path) -> list[Object]:
    """The objects of an example."""
    return load_objects(path.read_text("utf-8"))


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_every_cluster_accepts_it(path: Path) -> None:
    """Each object is valid, strictly, in the oldest and the newest Kubernetes."""
    objects = load(path)
    assert objects
    found = [
        text
        for kube in (KUBERNETES[0], KUBERNETES[-1])
        for text in schema_violations(objects, kube)
    ]
    assert found == []


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_nobody_has_more_rights_than_needed(path: Path) -> None:
    """Pods are "restricted", engines "baseline", and one sidecar is privileged."""
    privileged = PRIVILEGED.get(path.stem, set())
    for owner, spec in pod_specs(load(path)):
        assert spec["automountServiceAccountToken"] is False, owner
        rules = baseline_violations if path.stem in ENGINES else restricted_violations
        found = [text for text in rules(spec) if text.split()[0] not in privileged]
        assert found == [], owner
        assert {
            c["name"] for c in containers(spec) if c.get("securityContext", {}).get("privileged")
        } == privileged


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_mounts_are_read_only(path: Path) -> None:
    """Who reads models cannot write them: their volumes say so, where they are mounted, too."""
    for owner, spec in pod_specs(load(path)):
        for container in spec["containers"]:
            for mount in container["volumeMounts"]:
                if mount["name"] == "models":
                    assert mount["readOnly"] is True, owner


def _attributes(objects: Sequence[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    """The attributes of every volume of ours, as kubelet hands them to the plugin."""
    for item in objects:
        if item["kind"] == "PersistentVolume":
            csi = item["spec"]["csi"]
            assert csi["driver"] == DRIVER
            yield named(item), csi["volumeAttributes"]
        if item["kind"] == "StorageClass":
            assert item["provisioner"] == DRIVER
            parameters = item["parameters"]
            assert all(isinstance(value, str) for value in parameters.values())
            yield (
                named(item),
                {
                    name: value
                    for name, value in parameters.items()
                    if not name.startswith("csi.storage.k8s.io/")
                },
            )
    for owner, spec in pod_specs(objects):
        for volume in spec["volumes"]:
            if "csi" in volume:
                assert volume["csi"]["driver"] == DRIVER
                yield owner, volume["csi"]["volumeAttributes"]


def test_every_attribute_is_one_the_plugin_knows() -> None:
    """Attributes are the plugin's own or settings, and their values are good ones."""
    count = 0
    for path in EXAMPLES:
        for owner, attributes in _attributes(load(path)):
            has_secret = attributes.get("mode") != SIDECAR  # whose container has its own
            volume = parse_volume({**attributes, POD_UID: "a-pod"}, has_secret)
            assert volume.source.text.startswith(attributes["source"]), owner
            count += 1
    assert count >= 7


def test_sidecars_say_what_the_program_understands() -> None:
    """Arguments, probes and variables of the sidecars are commands, flags and settings of ours."""
    seen = []
    for path in EXAMPLES:
        for _, spec in pod_specs(load(path)):
            for container in containers(spec):
                if not container["image"].startswith("fusefs:"):
                    continue
                seen.append(container["args"][0])
                _parse(container["args"])
                for probe in ("startupProbe", "livenessProbe"):
                    if probe in container:
                        _check_probe(container, container[probe])
                variables = {e["name"]: e["value"] for e in container["env"]}
                resolve_config(file=None, environ=variables)
    assert seen == ["pull", "mount", "csi-sidecar"]


def _check_probe(container: Mapping[str, Any], probe: Mapping[str, Any]) -> None:
    if "httpGet" in probe:
        assert probe["httpGet"]["path"] in ("/readyz", "/healthz")
        assert f"--http-port={probe['httpGet']['port']}" in container["args"]
        return
    command = probe["exec"]["command"]
    assert command[0] == "fusefs"
    _parse(command[1:])
    assert probe["timeoutSeconds"] >= 15


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    return argument_parser().parse_args(arguments)


def test_fluid_asks_for_what_the_entrypoint_knows(tmp_path: Path) -> None:
    """Options and secrets of the Dataset are ours, and so is the type of its file system."""
    (path,) = (path for path in EXAMPLES if path.stem == "fluid")
    objects = load(path)
    profile = pick(objects, "ThinRuntimeProfile")["spec"]
    assert profile["fileSystemType"] == FSTYPE
    assert _parse(profile["fuse"]["command"][1:]).file is None
    (mount,) = pick(objects, "Dataset")["spec"]["mounts"]
    secrets = [option["name"] for option in mount["encryptOptions"]]
    assert set(secrets) <= set(CREDENTIALS)
    for name in secrets:
        (tmp_path / name).write_text("x")
    options = {**mount["options"], **{name: str(tmp_path / name) for name in secrets}}
    content: dict[str, Any] = {"mounts": [{**mount, "options": options}], "targetPath": "/t"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    arguments, variables = read_fluid(file)
    assert arguments.source == mount["mountPoint"]
    assert set(variables) == set(secrets)
