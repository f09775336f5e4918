"""The chart as real Helms render it: what every rendering must keep, and that the checks see it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helm.chart import (
    CHART,
    CI_VALUES,
    EXTRA_APIS,
    KUBERNETES,
    NAMESPACE,
    ChartRefused,
    Object,
    lint,
    pick,
    render,
    render_text,
    run_helm,
)
from tests.helm.checks import named, selectors, violations
from tests.helm.programs import HELMS, NEWEST

DEFAULT = CHART / "ci" / "default-values.yaml"
ALL = CHART / "ci" / "all-features-values.yaml"

SAMPLE = [
    # Each values file meets two Helms and two Kubernetes; `tests.helm.matrix` has all of it.
    *(
        (file, list(HELMS)[number % 3], KUBERNETES[number % 5])
        for number, file in enumerate(CI_VALUES)
    ),
    *(
        (file, list(HELMS)[(number + 1) % 3], KUBERNETES[(number + 3) % 5])
        for number, file in enumerate(CI_VALUES)
    ),
    *((ALL, NEWEST, kube) for kube in KUBERNETES),
]


@pytest.mark.parametrize(
    ("file", "version", "kube"), SAMPLE, ids=lambda v: v.stem if isinstance(v, Path) else v
)
def test_a_rendering_keeps_every_rule(file: Path, version: str, kube: str) -> None:
    """Schemas, labels, selectors, privileges, names and paths hold, whatever Helm and cluster."""
    lint(file, version=version, kube=kube)
    assert violations(render([file], version=version, kube=kube), kube) == []


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda path: path.stem)
def test_all_helms_render_the_same(file: Path) -> None:
    """Helm 3 and Helm 4 make the same objects of the same values."""
    renderings = [
        sorted(render([file], version=version), key=lambda o: (named(o), str(o)))
        for version in HELMS
    ]
    assert renderings[0] == renderings[1] == renderings[2]


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda path: path.stem)
def test_an_upgrade_changes_no_selector(file: Path) -> None:
    """Another image, label or setting leaves alone what the API server lets nobody change."""
    before = selectors(render([file]))
    changes = ["image.tag=9.9.9", "node.podLabels.a=b", "mounter.podLabels.a=b"]
    after = selectors(
        render([file], sets=[*changes, "settings.engine.workers=3"], flags=("--is-upgrade",))
    )
    assert before == after
    assert before


def _pod(objects: list[Object], ending: str) -> Object:
    spec: Object = pick(objects, "DaemonSet", ending)["spec"]["template"]["spec"]
    return spec


def _misspell(objects: list[Object]) -> None:
    _pod(objects, "-node")["containers"][0]["imagePullPollicy"] = "Always"


def _unlabel(objects: list[Object]) -> None:
    del pick(objects, "ConfigMap")["metadata"]["labels"]["app.kubernetes.io/version"]


def _overselect(objects: list[Object]) -> None:
    selector = pick(objects, "DaemonSet", "-node")["spec"]["selector"]["matchLabels"]
    selector["app.kubernetes.io/version"] = "0.1.0"


def _select_others(objects: list[Object]) -> None:
    selector = pick(objects, "DaemonSet", "-node")["spec"]["selector"]["matchLabels"]
    selector["app.kubernetes.io/component"] = "mounter"


def _privilege(objects: list[Object]) -> None:
    _pod(objects, "-mounter")["containers"][0]["securityContext"]["privileged"] = True


def _run_as_root(objects: list[Object]) -> None:
    _pod(objects, "-mounter")["securityContext"]["runAsUser"] = 0


def _keep_capabilities(objects: list[Object]) -> None:
    del _pod(objects, "-mounter")["containers"][0]["securityContext"]["capabilities"]


def _write_root(objects: list[Object]) -> None:
    _pod(objects, "-node")["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False


def _unlimit(objects: list[Object]) -> None:
    del _pod(objects, "-mounter")["containers"][0]["resources"]["limits"]


def _link_services(objects: list[Object]) -> None:
    del _pod(objects, "-node")["enableServiceLinks"]


def _rename_driver(objects: list[Object]) -> None:
    pick(objects, "CSIDriver")["metadata"]["name"] = "other.csi"


def _move_run_folder(objects: list[Object]) -> None:
    (volume,) = (v for v in _pod(objects, "-mounter")["volumes"] if v["name"] == "run")
    volume["hostPath"]["path"] = "/run/other"


def _long_name(objects: list[Object]) -> None:
    pick(objects, "ConfigMap")["metadata"]["name"] = "x" * 64


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_misspell, "imagePullPollicy"),
        (_unlabel, "lacks the labels"),
        (_overselect, "selects by"),
        (_select_others, "does not select its own pods"),
        (_privilege, "privileged=True"),
        (_run_as_root, "may run as root"),
        (_keep_capabilities, "keeps capabilities"),
        (_write_root, "can write to its root"),
        (_unlimit, "no memory limit"),
        (_link_services, "service links"),
        (_rename_driver, "serves fusefs.csi"),
        (_move_run_folder, "has the run folder /run/fusefs.csi, from /run/other"),
        (_long_name, "name that is too long"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_mistake_is_seen(
    plant: Callable[[list[Object]], None], said: str, default_objects: list[Object]
) -> None:
    """Each rule reports the mistake it was written for."""
    objects = copy.deepcopy(default_objects)
    plant(objects)
    assert any(said in violation for violation in violations(objects, "1.35"))


def test_nothing_privileged_but_the_plugin(default_objects: list[Object]) -> None:
    """The mounter has neither device nor capability nor token; the plugin alone shares mounts."""
    mounter, plugin = _pod(default_objects, "-mounter"), _pod(default_objects, "-node")
    assert (
        mounter["automountServiceAccountToken"] is plugin["automountServiceAccountToken"] is False
    )
    paths = {v["hostPath"]["path"] for v in mounter["volumes"] if "hostPath" in v}
    assert paths == {"/run/fusefs.csi"}
    shared = [m for c in plugin["containers"] for m in c["volumeMounts"] if "mountPropagation" in m]
    assert [(m["mountPath"], m["mountPropagation"]) for m in shared] == [
        ("/var/lib/kubelet", "Bidirectional")
    ]


def test_by_default_nobody_may_ask_the_api_server(default_objects: list[Object]) -> None:
    """Without the controller there is no role but that of `helm test`."""
    roles = [o for o in default_objects if "Role" in o["kind"]]
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in roles} == {"test"}


@pytest.mark.parametrize(
    ("sets", "key"),
    [
        ([], "fusefs.csi/not-ready"),
        (["driverName=models.csi"], "models.csi/not-ready"),
        (["node.startupTaint.key=example.com/starting"], "example.com/starting"),
    ],
)
def test_the_startup_taint_brings_its_rights(sets: list[str], key: str) -> None:
    """The plugin, and only it, gets a token, and may do what taking a taint needs and no more."""
    objects = render([], sets=["node.startupTaint.remove=true", *sets])
    plugin, mounter = _pod(objects, "-node"), _pod(objects, "-mounter")
    assert f"--startup-taint={key}" in plugin["containers"][0]["args"]
    assert plugin["automountServiceAccountToken"] is True
    assert mounter["automountServiceAccountToken"] is False
    role, binding = (
        pick(objects, "ClusterRole", "-node"),
        pick(objects, "ClusterRoleBinding", "-node"),
    )
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
        {"apiGroups": ["storage.k8s.io"], "resources": ["csinodes"], "verbs": ["get"]},
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == plugin["serviceAccountName"] != mounter["serviceAccountName"]
    assert subject["namespace"] == NAMESPACE


def test_the_plugin_does_without_the_api_server(default_objects: list[Object]) -> None:
    """A key alone gives no rights, and roles can be left to whoever owns the cluster."""
    keyed = render([], sets=["node.startupTaint.key=example.com/starting"])
    assert _pod(keyed, "-node") == _pod(default_objects, "-node")
    bare = render([], sets=["node.startupTaint.remove=true", "rbac.create=false"])
    assert [named(o) for o in bare if o["kind"] == "ClusterRole"] == ["ClusterRole/fusefs-test"]
    assert _pod(bare, "-node")["automountServiceAccountToken"] is True


def test_volume_stats_can_be_left_out(default_objects: list[Object]) -> None:
    """One value, one flag of the plugin."""
    flag = "--no-volume-stats"
    without = render([], sets=["volumeStats.enabled=false"])
    assert flag in _pod(without, "-node")["containers"][0]["args"]
    assert flag not in _pod(default_objects, "-node")["containers"][0]["args"]


@pytest.mark.parametrize(
    ("kube", "values", "present"),
    [
        ("1.29", [], set()),
        ("1.35", [], set()),
        ("1.37", [], {"preventPodSchedulingIfMissing"}),
        ("1.36", ["csi.preventPodSchedulingIfMissing=true"], {"preventPodSchedulingIfMissing"}),
        ("1.37", ["csi.preventPodSchedulingIfMissing=false"], set()),
        ("1.33", ["csi.tokenRequests[0].audience=a"], {"tokenRequests"}),
        (
            "1.35",
            ["csi.tokenRequests[0].audience=a"],
            {"tokenRequests", "serviceAccountTokenInSecrets"},
        ),
        (
            "1.35",
            ["csi.tokenRequests[0].audience=a", "csi.serviceAccountTokenInSecrets=false"],
            {"tokenRequests"},
        ),
        ("1.29", ["csi.seLinuxMount=true"], {"seLinuxMount"}),
    ],
)
def test_the_driver_has_what_the_cluster_knows(
    kube: str, values: list[str], present: set[str]
) -> None:
    """Fields of newer clusters appear there only, and there by themselves."""
    spec = pick(render([], kube=kube, sets=values), "CSIDriver")["spec"]
    newer = {"preventPodSchedulingIfMissing", "tokenRequests", "serviceAccountTokenInSecrets"}
    assert spec.keys() & (newer | {"seLinuxMount"}) == present
    assert spec["attachRequired"] is False
    assert spec["fsGroupPolicy"] == "None"


def test_what_the_cluster_lacks_is_left_out() -> None:
    """Monitors and rules appear with the Prometheus operator, SCCs on OpenShift."""
    custom = {"PodMonitor", "PrometheusRule", "SecurityContextConstraints"}
    without = run_helm("template", "x", CHART, "-f", ALL).stdout
    assert not [kind for kind in custom if f"kind: {kind}" in without]
    everywhere = run_helm(
        "template", "x", CHART, "-f", ALL,
        *(f"--api-versions={api}" for api in (*EXTRA_APIS, "security.openshift.io/v1")),
    ).stdout  # fmt: skip
    assert [kind for kind in custom if f"kind: {kind}" not in everywhere] == []


def test_older_clusters_are_refused() -> None:
    """Helm says so itself before 1.29."""
    with pytest.raises(ChartRefused, match="incompatible with Kubernetes"):
        render([], kube="1.28")


def test_images_come_from_where_they_are_said_to() -> None:
    """An air-gapped cluster has one registry for all images; a digest wins over a tag."""
    airgap = render([CHART / "ci" / "airgap-values.yaml"])
    images = {c["image"] for o in ("-node", "-mounter") for c in _pod(airgap, o)["containers"]}
    registry = "registry.example.internal:5000/mirror"
    digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    assert images == {
        f"{registry}/fusefs@{digest}",
        f"{registry}/sig-storage/csi-node-driver-registrar:v2.13.0",
    }


@pytest.mark.parametrize("version", [version for version in HELMS if version[0] != "3"])
def test_the_notes_say_what_to_do_next(version: str) -> None:
    """After an installation Helm shows how to look, to test, and to use a volume.

    Helm 3 asks a cluster even for a dry run; its templates are the same.
    """
    notes = run_helm(
        "install", "models", CHART, "--namespace", NAMESPACE, "--dry-run=client",
        "--set", "driverName=models.csi", version=version,
    ).stdout.partition("NOTES:")[2]  # fmt: skip
    assert f"helm -n {NAMESPACE} test models" in notes
    assert "driver: models.csi" in notes
    assert "No registry was named" in notes


def test_deployments_without_helm_leave_helm_out() -> None:
    """`deploy/kubernetes` renders without the tests, which only Helm runs."""
    assert "helm.sh/hook" not in render_text([], flags=("--skip-tests",))
