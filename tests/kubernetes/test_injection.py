"""What the webhook adds to pods: checked on the pods that come of it, with the API's schemas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from fusefs.cli.commands import argument_parser
from fusefs.errors import ConfigError
from fusefs.kubernetes.injection import PORT, SIDECARS_MAX, Recipe, patch_of, wants_sidecars
from tests.helm.chart import KUBERNETES, ROOT
from tests.helm.checks import restricted_violations, schema_violations
from tests.kubernetes.pods import (
    DRIVER,
    IMAGE,
    RECIPE,
    Pod,
    container,
    patched,
    pod,
    sidecar,
    volume,
)


def _injected(item: Pod, recipe: Recipe = RECIPE) -> Pod:
    """The pod with its sidecars: valid for the API server, "restricted", and needing no more."""
    result = patched(item, patch_of(item, recipe))
    for kube in (KUBERNETES[0], KUBERNETES[-1]):
        assert list(schema_violations([result], kube)) == []
    assert list(restricted_violations(result["spec"])) == []
    assert patch_of(result, recipe) == []
    return result


def _first(item: Pod, place: int = 0) -> Pod:
    found: Pod = item["spec"]["initContainers"][place]
    return found


def test_a_pod_gets_its_sidecar() -> None:
    """The sidecar is native and first, with its emptyDirs, and does not mount the model itself."""
    result = _injected(pod(initContainers=[container("warm")]))
    assert [c["name"] for c in result["spec"]["initContainers"]] == ["fusefs", "warm"]
    made = _first(result)
    assert (made["image"], made["imagePullPolicy"]) == (IMAGE, "IfNotPresent")
    assert made["restartPolicy"] == "Always"
    assert made["args"] == ["csi-sidecar", "--run-dir=/run/fusefs", "--http-port=9818"]
    assert argument_parser().parse_args(made["args"]).http_port == 9818
    assert made["startupProbe"]["httpGet"] == {"path": "/readyz", "port": 9818}
    assert made["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 9818}
    assert made["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in made["volumeMounts"]}
    assert mounts == {"fusefs": "/run/fusefs", "fusefs-tmp": "/tmp"}
    folders = {v["name"]: v.get("emptyDir") for v in result["spec"]["volumes"]}
    memory = {"medium": "Memory", "sizeLimit": "64Mi"}
    assert folders == {"models": None, "fusefs": memory, "fusefs-tmp": memory}
    assert "envFrom" not in made


@pytest.mark.parametrize("empty", [{}, {"initContainers": None}, {"initContainers": []}])
def test_init_containers_may_be_missing(empty: dict[str, Any]) -> None:
    """A pod without init containers, however it says so, has one afterwards."""
    assert len(_injected(pod(**empty))["spec"]["initContainers"]) == 1


def test_what_is_there_is_left_alone() -> None:
    """Nothing but additions: without them the pod is what it was."""
    item = pod(initContainers=[container("warm")], nodeSelector={"gpu": "yes"})
    before = copy.deepcopy(item)
    result = _injected(item)
    assert item == before
    result["spec"]["initContainers"].pop(0)
    del result["spec"]["volumes"][1:]
    assert result == before


def test_each_volume_has_a_sidecar_of_its_own() -> None:
    """Further volumes get further names, emptyDirs and ports; those of others stay theirs."""
    busy = container(ports=[{"containerPort": 9819}])
    result = _injected(
        pod(volume("a"), volume("b", sidecarVolume="second"), volume("c", sidecarVolume="third"),
            containers=[busy])
    )  # fmt: skip
    made = result["spec"]["initContainers"]
    assert [c["name"] for c in made] == ["fusefs", "fusefs-second", "fusefs-third"]
    assert [c["startupProbe"]["httpGet"]["port"] for c in made] == [9818, 9820, 9821]
    assert [c["args"][2] for c in made] == [f"--http-port={n}" for n in (9818, 9820, 9821)]
    assert [c["volumeMounts"][0]["name"] for c in made] == ["fusefs", "second", "third"]


def test_a_sidecar_by_hand_is_kept() -> None:
    """What the user wrote serves its volume, whatever it is called; only the others are added."""
    own = sidecar("mine", "fusefs")
    folder = {"name": "fusefs", "emptyDir": {}}
    assert patch_of(pod(volume(), folder, initContainers=[own]), RECIPE) == []
    two = pod(
        volume(), volume("more", sidecarVolume="second"), folder,
        initContainers=[sidecar("fusefs")],
    )  # fmt: skip
    result = _injected(two)
    assert [c["name"] for c in result["spec"]["initContainers"]] == ["fusefs-second", "fusefs"]
    assert _first(result)["args"][2] == "--http-port=9819"
    assert [v["name"] for v in result["spec"]["volumes"]].count("fusefs") == 1


def test_an_emptydir_of_the_users_is_used() -> None:
    """Its size and medium are the user's."""
    folder = {"name": "fusefs", "emptyDir": {"sizeLimit": "1Mi"}}
    result = _injected(pod(volume(), folder))
    assert [v for v in result["spec"]["volumes"] if v["name"] == "fusefs"] == [folder]


def test_annotations_say_what_the_sidecar_has() -> None:
    """Memory, cores and a secret for the environment; a low limit lowers the request as well."""
    made = _first(
        _injected(
            pod(
                annotations={
                    f"{DRIVER}/memory-limit": "8Gi",
                    f"{DRIVER}/memory-request": "1.5Gi",
                    f"{DRIVER}/cpu-request": "2",
                    f"{DRIVER}/env-secret": "models-s3",
                    "example.com/other": "stays",
                }
            )
        )
    )
    assert made["resources"] == {
        "requests": {"cpu": "2", "memory": "1.5Gi"},
        "limits": {"memory": "8Gi"},
    }
    assert made["envFrom"] == [{"secretRef": {"name": "models-s3"}}]
    small = _first(_injected(pod(annotations={f"{DRIVER}/memory-limit": "512Mi"})))
    assert small["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"memory": "512Mi"},
    }


def test_a_proxy_comes_first() -> None:
    """Behind Istio's native sidecar nobody gets out before it runs: ours follows it."""
    istio = [
        container("istio-init", "tmp"),
        container("istio-proxy", "tmp", restartPolicy="Always"),
        container("warm"),
    ]
    result = _injected(pod(volume(), {"name": "tmp", "emptyDir": {}}, initContainers=istio))
    names = [c["name"] for c in result["spec"]["initContainers"]]
    assert names == ["istio-init", "istio-proxy", "fusefs", "warm"]


def test_the_example_of_the_documents_is_injected() -> None:
    """What docs/kubernetes/sidecars.md shows is enough, and its annotations are understood."""
    text = (ROOT / "docs/kubernetes/sidecars.md").read_text("utf-8").partition("## Injected")[2]
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    item = pod()
    item["metadata"].update(example["metadata"])
    item["spec"].update(example["spec"])
    assert wants_sidecars(item, RECIPE)
    made = _first(_injected(item))
    assert made["resources"]["limits"] == {"memory": "8Gi"}
    assert made["envFrom"] == [{"secretRef": {"name": "models-s3"}}]
    names = {"memory-limit", "memory-request", "cpu-request", "env-secret"}
    assert [name for name in names if f"`{name}`" not in text] == []
    assert f"next\n  port after {PORT}" in text


def test_openshift_chooses_the_user() -> None:
    """Where the namespace's range decides, the sidecar names no user; elsewhere it is nobody."""
    user = {"runAsUser": 65534, "runAsGroup": 65534}
    plain = _first(_injected(pod()))["securityContext"]
    assert plain.items() >= user.items()
    chosen = _first(_injected(pod(annotations={"openshift.io/scc": "restricted-v2"})))
    assert chosen["securityContext"].keys() == plain.keys() - user.keys()


def test_the_driver_may_be_called_otherwise() -> None:
    """Label, annotations and volumes are those of the driver's name; the others' are not ours."""
    other = Recipe("models.example.com", IMAGE, "Always")
    item = pod(annotations={"models.example.com/memory-limit": "2Gi"})
    assert wants_sidecars(item, RECIPE)
    assert not wants_sidecars(item, other)
    assert patch_of(item, other) == []
    item["spec"]["volumes"][0]["csi"]["driver"] = other.driver
    made = _first(_injected(item, other))
    assert made["resources"]["limits"] == {"memory": "2Gi"}
    assert made["imagePullPolicy"] == "Always"


@pytest.mark.parametrize(
    "labels",
    [{}, None, {f"{DRIVER}/inject": "false"}, {f"{DRIVER}/inject": True}, {"inject": "true"}],
)
def test_nobody_gets_what_they_did_not_ask_for(labels: Any) -> None:
    """The label has to be there and to be the text "true"."""
    item = pod()
    item["metadata"]["labels"] = labels
    assert not wants_sidecars(item, RECIPE)


def test_other_volumes_need_no_sidecar() -> None:
    """Volumes of the node's mounter, of other drivers and of other kinds add nothing."""
    shared = volume("shared")
    del shared["csi"]["volumeAttributes"]["mode"]
    foreign = volume("foreign")
    foreign["csi"]["driver"] = "other.csi"
    bare = {"name": "bare", "csi": {"driver": DRIVER}}
    claim = {"name": "claim", "persistentVolumeClaim": {"claimName": "x"}}
    assert patch_of(pod(shared, foreign, bare, claim), RECIPE) == []


def _annotated(name: str, text: Any) -> Pod:
    return pod(annotations={f"{DRIVER}/{name}": text})


REFUSED: dict[str, tuple[Pod, str]] = {
    "limit": (_annotated("memory-limit", "lots"), "memory-limit must be a quantity like 4Gi, not"),
    "limit of zero": (_annotated("memory-limit", "0"), "memory-limit must be a quantity"),
    "limit that is no text": (_annotated("memory-limit", 4), "memory-limit must be a quantity"),
    "limit with a line": (_annotated("memory-limit", "4Gi\n"), "memory-limit must be a quantity"),
    "negative request": (_annotated("memory-request", "-1"), "memory-request must be a quantity"),
    "request over limit": (_annotated("memory-request", "5Gi"), "is more than the limit 4Gi"),
    "cores": (_annotated("cpu-request", "1 core"), "cpu-request must be a quantity like 500m"),
    "secret": (_annotated("env-secret", "Models S3"), "env-secret must be the name of a Secret"),
    "empty secret": (_annotated("env-secret", ""), "env-secret must be the name of a Secret"),
    "long secret": (_annotated("env-secret", "x" * 254), "env-secret must be the name of a Secret"),
    "other container": (
        pod(containers=[container("fusefs")]),
        "container fusefs that is no sidecar",
    ),
    "other init container": (
        pod(initContainers=[container("fusefs")]),
        "that is no sidecar of ours",
    ),
    "second name taken": (
        pod(volume("a"), volume("b", sidecarVolume="x"), containers=[container("fusefs-x")]),
        "container fusefs-x that is no sidecar",
    ),
    "sidecar without restartPolicy": (
        pod(initContainers=[sidecar(restartPolicy=None)]),
        "must be an init container with restartPolicy: Always",
    ),
    "sidecar among the containers": (
        pod(containers=[sidecar()]),
        "must be an init container with restartPolicy: Always",
    ),
    "reader before the sidecar": (
        pod(initContainers=[container("early"), sidecar()]),
        "'early' mounts the volume models before anybody serves it: it must come after fusefs",
    ),
    "reader before the proxy": (
        pod(
            initContainers=[container("early"), container("istio-proxy", restartPolicy="Always")],
        ),
        "'early' mounts the volume models before anybody serves it: it must come after the sidecar",
    ),
    "sidecar that reads itself": (
        pod(
            initContainers=[
                sidecar(
                    volumeMounts=[{"name": n, "mountPath": f"/{n}"} for n in ("fusefs", "models")]
                )
            ]
        ),
        "'fusefs' mounts the volume models before",
    ),
    "two volumes for one sidecar": (
        pod(volume("a"), volume("b", sidecarVolume="fusefs")),
        "two volumes have the sidecarVolume fusefs",
    ),
    "meeting that is no name": (pod(volume(sidecarVolume="../x")), "not '../x'"),
    "meeting that is too long": (
        pod(volume("a"), volume("b", sidecarVolume="x" * 60)),
        "too long to name a container by",
    ),
    "meeting that is a claim": (
        pod(volume(), {"name": "fusefs", "persistentVolumeClaim": {"claimName": "x"}}),
        "the volume fusefs must be an emptyDir",
    ),
    "temporary files in a secret": (
        pod(volume(), {"name": "fusefs-tmp", "secret": {"secretName": "x"}}),
        "the volume fusefs-tmp must be an emptyDir",
    ),
    "meeting among temporary files": (
        pod(volume("a"), volume("b", sidecarVolume="fusefs-tmp")),
        "fusefs-tmp is for temporary files",
    ),
    "too many": (
        pod(*(volume(f"v{n}", sidecarVolume=f"m{n}") for n in range(SIDECARS_MAX + 1))),
        f"more than {SIDECARS_MAX} volumes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_a_sentence(case: str) -> None:
    """Each refusal names what to change, on one line."""
    item, said = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        patch_of(item, RECIPE)
    assert said in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


def test_the_most_there_can_be_is_injected() -> None:
    """As many sidecars as are allowed have different names and ports."""
    volumes = [volume(f"v{n}", sidecarVolume=f"m{n}") for n in range(SIDECARS_MAX)]
    made = _injected(pod(*volumes, containers=[container(mounts="v0")]))["spec"]["initContainers"]
    assert len({c["name"] for c in made}) == SIDECARS_MAX
    assert len({c["livenessProbe"]["httpGet"]["port"] for c in made}) == SIDECARS_MAX
