"""The chart's values: strict, documented, and of one mind with the table of settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusefs.cli.resolve import resolve_config
from fusefs.config import Config
from tests.helm import pages
from tests.helm.chart import CHART, ROOT, ChartRefused, pick, render
from tests.helm.programs import HELMS

FREE = {
    "properties.global": "parent charts have keys of their own there",
    "properties.mounter.properties.extraVolumes.items": "the API server's to check",
    "properties.mounter.properties.extraVolumeMounts.items": "the API server's to check",
    "properties.networkPolicy.properties.metricsFrom.items.properties.podSelector": "the same",
    "properties.networkPolicy.properties.metricsFrom.items.properties.namespaceSelector": "same",
    "properties.networkPolicy.properties.metricsFrom.items.properties.ipBlock": "the same",
    "definitions.environment.items.properties.valueFrom": "the same",
    "definitions.affinity.properties.nodeAffinity": "the same",
    "definitions.affinity.properties.podAffinity": "the same",
    "definitions.affinity.properties.podAntiAffinity": "the same",
}
"""The objects of the schema that may hold anything, each with its reason."""


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(pages.SCHEMA.read_text("utf-8"))
    return schema


def _objects(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with where it stands."""
    if isinstance(part, list):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    kinds = part.get("type", [])
    if "object" in ([kinds] if isinstance(kinds, str) else kinds):
        yield path, part
    for name, inner in part.items():
        yield from _objects(inner, f"{path}.{name}" if path else str(name))


def test_the_schema_is_strict() -> None:
    """Every object of the values refuses keys that it does not name, but for a few with reasons."""
    free = {path for path, part in _objects(_schema()) if "additionalProperties" not in part}
    assert free == set(FREE)


def test_every_value_is_described_and_has_a_default() -> None:
    """values.yaml and the schema have the same keys, and each says what it is."""
    values = yaml.safe_load(pages.VALUES.read_text("utf-8"))

    def compare(value: Any, schema: dict[str, Any], path: str) -> None:
        assert schema.get("description"), path
        inner = schema.get("properties")
        if inner and not path.startswith(".settings"):
            assert set(value) == set(inner), path
            for name, part in inner.items():
                compare(value[name], part, f"{path}.{name}")

    compare(values, {"description": "all", **_schema()}, "")


def test_the_settings_are_those_of_the_table() -> None:
    """The value `settings` knows what `fusefs mount --help` knows, no more and no less."""
    assert pages.schema_text() == pages.SCHEMA.read_text("utf-8"), "python -m tests.helm.pages"


def test_the_readme_has_every_value() -> None:
    """The chart's README is made of its schema and its values."""
    assert pages.readme_text() == pages.README.read_text("utf-8"), "python -m tests.helm.pages"


def test_the_manifests_without_helm_are_those_of_the_chart() -> None:
    """deploy/kubernetes is what the chart renders, and has nothing besides but its namespace."""
    there = {path.name: path.read_text("utf-8") for path in pages.DEPLOY.iterdir()}
    namespace = yaml.safe_load(there.pop("namespace.yaml"))
    assert namespace["metadata"]["name"] == "fusefs"
    assert pages.deploy_files() == there, "python -m tests.helm.pages"


def test_chart_and_program_have_one_version() -> None:
    """AppVersion names the image that holds this source."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert f'__version__ = "{chart["appVersion"]}"' in (ROOT / "fusefs/__init__.py").read_text()
    assert f"## {chart['version']}" in (CHART / "CHANGELOG.md").read_text("utf-8")


def test_settings_arrive_as_they_were_said(tmp_path: Path) -> None:
    """What values say is what a mount makes of the file: sizes, flags, modes, texts with quotes."""
    settings = {
        "engine": {"memory": "2GiB", "range_size": 16777216},
        "tree": {"ttl_s": 0.5},
        "kernel": {"push": False},
        "mount": {"uid": 4294967294, "umask": "027"},
        "s3": {"profile": 'a "quoted" \\ <näme>'},
        "log": {"level": "debug"},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"settings": settings}), "utf-8")
    config = _parsed(tmp_path, pick(render([file]), "ConfigMap")["data"]["fusefs.toml"])
    assert (config.engine.memory, config.engine.range_size) == (2 << 30, 16 << 20)
    assert config.tree.ttl_s == 0.5
    assert config.kernel.push is False
    assert (config.mount.uid, config.mount.umask) == (4294967294, 0o027)
    assert config.s3.profile == 'a "quoted" \\ <näme>'
    assert config.log.level == "debug"


def _parsed(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "fusefs.toml"
    file.write_text(text, "utf-8")
    return resolve_config(file=file, environ={})


REFUSED = [
    ("drivername=x", "drivername"),
    ("driverName=Fusefs_", "driverName"),
    ("driverName=-fusefs", "driverName"),
    ("kubeletDir=var/lib/kubelet", "kubeletDir"),
    ("kubeletDir=/var/lib/kubelet/", "kubeletDir"),
    ("image.tag=a b", "tag"),
    ("image.digest=sha256:12", "digest"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("settings.engine.memry=1G", "memry"),
    ("settings.engine.memory=lots", "memory"),
    ("settings.engine.connections=0", "connections"),
    ("settings.mount.umask=22", "umask"),
    ("settings.log.level=loud", "level"),
    ("mounter.resources.limits.memory=much", "memory"),
    ("mounter.resources.limit.memory=1Gi", "limit"),
    ("mounter.user=0", "user"),
    ("mounter.tolerations[0].opperator=Exists", "opperator"),
    ("node.updateStrategy.type=Recreate", "type"),
    ("node.startupTaint.key=Example.com/x", "key"),
    ("node.startupTaint.key=a b", "key"),
    ("node.startupTaint.effect=NoExecute", "effect"),
    ("volumeStats.enabled=maybe", "enabled"),
    ("csi.fsGroupPolicy=Maybe", "fsGroupPolicy"),
    ("csi.volumeLifecycleModes[0]=Forever", "volumeLifecycleModes"),
    ("csi.tokenRequests[0].audiance=x", "audiance"),
    ("registrar.mode=none", "mode"),
    ("storageClasses[0].name=x", "parameters"),
    ("storageClasses[0].name=x,storageClasses[0].parameters.region=x", "source"),
    ("fileRoot=nfs", "fileRoot"),
    ("webhook.failurePolicy=Maybe", "failurePolicy"),
    ("webhook.certificate.mode=none", "mode"),
    ("webhook.certificate.caBundle=x", "caBundle"),
    ("webhook.certificate.issuerRef.nmae=x", "nmae"),
    ("webhook.replicas=0", "replicas"),
    ("webhook.port=70000", "port"),
    ("cache.hostPath=/var/cache", "cache"),
]


@pytest.mark.parametrize("version", ["3.17.3", "4.3.1"])
def test_a_wrong_value_is_refused_by_name(version: str) -> None:
    """Helm refuses what the schema does not know, and its message names the key."""
    assert version in HELMS
    silent = []
    for text, name in REFUSED:
        try:
            render([], version=version, sets=[text])
        except ChartRefused as refusal:
            if name not in str(refusal):
                silent.append(f"{text}: {refusal}")
        else:
            silent.append(f"{text}: accepted")
    assert silent == []


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["storageClasses[0].name=x", "storageClasses[0].parameters.source=s3://b"], "controller"),
        (
            ["webhook.enabled=true", "webhook.certificate.mode=secret"],
            "needs certificate.secretName and certificate.caBundle",
        ),
        (["csi.preventPodSchedulingIfMissing=true"], "needs Kubernetes 1.36 or later"),
        (
            [f"driverName={'x' * 60}", f"kubeletDir=/{'y' * 60}"],
            "their sockets would have 148 characters, 107 is the most",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_a_sentence(
    sets: list[str], said: str
) -> None:
    """What no schema can say, the templates do."""
    with pytest.raises(ChartRefused, match=said):
        render([], kube="1.33", sets=sets)


def test_old_clusters_have_no_tokens_in_secrets() -> None:
    """A value that a cluster would ignore is refused with what to say instead."""
    with pytest.raises(ChartRefused, match=r"needs Kubernetes 1\.35 or later: say auto or false"):
        render([], kube="1.33", sets=["csi.serviceAccountTokenInSecrets=true"])
