"""What the chart says to the plugin and of it: flags, attributes, metrics are the plugin's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusefs.cli.commands import argument_parser
from fusefs.kubernetes.credentials import SECRET_KEYS
from fusefs.kubernetes.places import DRIVER_NAME, MOUNTER_UID
from tests.helm.chart import CHART, CI_VALUES, ROOT, render
from tests.helm.checks import pod_specs
from tests.helm.test_examples import EXAMPLES, load

ALL = CHART / "ci" / "all-features-values.yaml"
METRICS = (ROOT / "fusefs/kubernetes/metrics.py").read_text("utf-8")


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda path: path.stem)
def test_our_containers_are_started_with_flags_that_exist(file: Path) -> None:
    """The program parses the arguments of every container of ours."""
    seen = set()
    for _, spec in pod_specs(render([file])):
        for container in spec["containers"]:
            if container["name"] in ("plugin", "mounter", "controller", "webhook"):
                argument_parser().parse_args(container["args"])
                seen.add(container["name"])
    serving = "webhook" if file.stem == "sidecar-only-values" else "mounter"
    assert {"plugin", serving} <= seen


def test_the_names_are_the_programs_defaults() -> None:
    """Driver and user are the same by default in chart and program."""
    specs = dict(pod_specs(render([])))
    plugin = argument_parser().parse_args(specs["DaemonSet/fusefs-node"]["containers"][0]["args"])
    assert plugin.driver_name == DRIVER_NAME
    assert plugin.mounter_uid == MOUNTER_UID
    assert specs["DaemonSet/fusefs-mounter"]["securityContext"]["runAsUser"] == MOUNTER_UID


def test_alerts_and_documents_name_metrics_that_exist() -> None:
    """Every metric of a rule or of docs/kubernetes/metrics.md is one of the plugin or mounter."""
    known = set(re.findall(r'"(fusefs_\w+)"', METRICS))
    (rule,) = (item for item in render([ALL]) if item["kind"] == "PrometheusRule")
    alerted = set(
        re.findall(r"fusefs_\w+", str([r["expr"] for r in rule["spec"]["groups"][0]["rules"]]))
    )
    documented = set(
        re.findall(r"fusefs_\w+", (ROOT / "docs/kubernetes/metrics.md").read_text("utf-8"))
    )
    assert alerted
    assert alerted <= known
    assert documented == known


def test_alerts_stand_in_the_documents() -> None:
    """Whoever is woken finds the alert's name in the documents."""
    (rule,) = (item for item in render([ALL]) if item["kind"] == "PrometheusRule")
    page = (ROOT / "docs/kubernetes/metrics.md").read_text("utf-8")
    missing = [
        r["alert"] for r in rule["spec"]["groups"][0]["rules"] if f"`{r['alert']}`" not in page
    ]
    assert missing == []


def test_secrets_of_the_examples_have_keys_that_exist() -> None:
    """What examples write into Secrets is what the plugin takes from them."""
    keys = set()
    for path in EXAMPLES:
        for item in load(path):
            if item["kind"] == "Secret":
                keys |= item["stringData"].keys()
    assert keys
    assert keys <= SECRET_KEYS.keys()
