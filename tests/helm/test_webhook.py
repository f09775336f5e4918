"""The webhook in the chart: whom it asks, whom the API server trusts, and what it stays out of."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fusefs.cli.commands import argument_parser
from fusefs.kubernetes.injection import COMMAND, Recipe
from fusefs.kubernetes.webhook import PATH, REQUEST_S
from tests.helm.chart import (
    CHART,
    KUBERNETES,
    NAMESPACE,
    Object,
    load_objects,
    pick,
    render,
    run_helm,
)
from tests.helm.checks import restricted_violations, violations
from tests.helm.programs import HELMS
from tests.helm.stub import serving

ALL = CHART / "ci" / "all-features-values.yaml"
ON = ["webhook.enabled=true"]
PEM = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"


def _ours(objects: Sequence[Object]) -> set[str]:
    """The kinds of what the webhook brings."""
    component = "app.kubernetes.io/component"
    return {o["kind"] for o in objects if o["metadata"]["labels"][component] == "webhook"}


def _pod(objects: Sequence[Object]) -> Object:
    spec: Object = pick(objects, "Deployment", "-webhook")["spec"]["template"]["spec"]
    return spec


def _hook(objects: Sequence[Object]) -> Object:
    (hook,) = pick(objects, "MutatingWebhookConfiguration")["webhooks"]
    found: Object = hook
    return found


def test_there_is_none_by_default(default_objects: list[Object]) -> None:
    """Who did not ask for the webhook has nothing of it."""
    assert _ours(default_objects) == set()


@pytest.mark.parametrize(
    ("version", "kube"), [(list(HELMS)[n % 3], kube) for n, kube in enumerate(KUBERNETES)]
)
def test_with_a_generated_certificate_every_rule_is_kept(version: str, kube: str) -> None:
    """One value turns it on; the policy is there where the cluster knows it, from 1.30 on."""
    objects = render([], version=version, kube=kube, sets=[*ON, "networkPolicy.enabled=true"])
    assert violations(objects, kube) == []
    policy = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert _ours(objects) == {
        "Deployment", "Service", "ServiceAccount", "Secret", "MutatingWebhookConfiguration",
        "PodDisruptionBudget", "NetworkPolicy", *(policy if kube != "1.29" else ()),
    }  # fmt: skip


def test_the_generated_certificate_is_one(tmp_path: Path) -> None:
    """Key and certificate fit, and the API server trusts the authority that the Secret holds."""
    objects = render([], sets=ON)
    data = pick(objects, "Secret", "-webhook-tls")["data"]
    for name, text in data.items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    assert _hook(objects)["clientConfig"]["caBundle"] == data["ca.crt"]
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    _shake_hands(server, client, f"fusefs-webhook.{NAMESPACE}.svc")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """The handshake in memory. Raises ssl.SSLError if the client does not trust the server."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname=name)
    answering = server.wrap_bio(there, back, server_side=True)
    left = {asking, answering}
    for _ in range(10):
        for end in list(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not left


@contextmanager
def _open_api(secret: Object) -> Iterator[str]:
    """A stand-in for an API server that has this Secret, and knows no kind besides."""
    kind = {"name": "secrets", "namespaced": True, "kind": "Secret", "verbs": ["get"]}
    meta = secret["metadata"]
    known = {
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [kind]},
        f"/api/v1/namespaces/{meta['namespace']}/secrets/{meta['name']}": secret,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = known.get(urlsplit(self.path).path)
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or {"kind": "Status", "code": 404}).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serving(Handler) as url:
        yield url


def test_an_upgrade_keeps_the_generated_certificate() -> None:
    """What the cluster has is rendered again, byte for byte; half a Secret is made anew.

    By Helm 3: the dry run of Helm 4 asks a cluster for the schemas of all kinds. The templates, and
    the function that looks, are the same.
    """
    before = pick(render([], sets=ON), "Secret", "-webhook-tls")
    flags = ("template", "fusefs", CHART, "--namespace", NAMESPACE, "--is-upgrade",
             "--dry-run=server", "--kube-token=x", "--set", ON[0],
             "--show-only", "templates/webhook-mutating.yaml")  # fmt: skip
    for whole in (True, False):
        if not whole:
            del before["data"]["tls.key"]
        with _open_api(before) as api:
            text = run_helm(*flags, f"--kube-apiserver={api}", version="3.17.3").stdout
        after = load_objects(text)
        data = pick(after, "Secret")["data"]
        assert (data == before["data"]) is whole
        assert set(data) == {"ca.crt", "tls.crt", "tls.key"}
        assert _hook(after)["clientConfig"]["caBundle"] == data["ca.crt"]


def test_it_is_asked_about_pods_that_carry_the_label_only() -> None:
    """Label, namespaces and rules of webhook and policy are the same, and the program's own."""
    objects = render([ALL])
    hook = _hook(objects)
    constraints = pick(objects, "ValidatingAdmissionPolicy")["spec"]["matchConstraints"]
    label = Recipe("models.example.com", "x").label
    for part in (hook, constraints):
        assert part["objectSelector"] == {"matchLabels": {label: "true"}}
        assert part["namespaceSelector"] == {
            "matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}
            ]
        }
    assert hook["rules"] == constraints["resourceRules"]
    assert hook["rules"][0]["operations"] == ["CREATE"]
    assert hook["reinvocationPolicy"] == "IfNeeded"
    assert hook["failurePolicy"] == "Ignore"
    assert _hook(render([], sets=ON))["failurePolicy"] == "Fail"
    assert hook["sideEffects"] == "None"
    assert hook["timeoutSeconds"] <= REQUEST_S
    assert hook["clientConfig"]["service"]["path"] == PATH
    assert len(hook["name"].split(".")) >= 3  # or the API server refuses it


def test_the_policy_looks_for_the_sidecars_command() -> None:
    """What the policy takes for a sidecar is what the webhook adds; and it denies."""
    objects = render([ALL])
    (rule,) = pick(objects, "ValidatingAdmissionPolicy")["spec"]["validations"]
    assert f"'{COMMAND}' in c.args" in rule["expression"]
    assert "c.restartPolicy == 'Always'" in rule["expression"]
    binding = pick(objects, "ValidatingAdmissionPolicyBinding")["spec"]
    assert binding["policyName"] == pick(objects, "ValidatingAdmissionPolicy")["metadata"]["name"]
    assert binding["validationActions"] == ["Deny"]


def test_service_and_ports_lead_to_the_program() -> None:
    """The Service selects the pods, and its port is that of the program's flag."""
    objects = render([ALL])
    template = pick(objects, "Deployment", "-webhook")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    service = pick(objects, "Service", "-webhook")
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    arguments = argument_parser().parse_args(container["args"])
    assert (arguments.port, arguments.http_port) == (ports["https"], ports["http"]) == (10250, 9808)
    assert service["spec"]["ports"][0]["targetPort"] == "https"
    reference = _hook(objects)["clientConfig"]["service"]
    assert reference["name"] == service["metadata"]["name"]
    assert reference["port"] == service["spec"]["ports"][0]["port"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "certificate")
    assert mount["mountPath"] == str(arguments.cert_dir)
    assert arguments.image == container["image"]


def test_its_pods_have_no_rights() -> None:
    """Restricted by Pod Security, without a token, and with no way out where policies hold."""
    objects = render([ALL])
    spec = _pod(objects)
    assert list(restricted_violations(spec)) == []
    assert spec["automountServiceAccountToken"] is False
    policy = pick(objects, "NetworkPolicy", "-webhook")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    assert policy["ingress"][0] == {"ports": [{"protocol": "TCP", "port": "https"}]}


def test_openshift_chooses_its_user() -> None:
    """Elsewhere it is nobody, with a group that may read the key; there, whoever is assigned."""
    assert _pod(render([], sets=ON))["securityContext"]["fsGroup"] == 65534
    assigned = _pod(render([], sets=[*ON, "openshift.scc=true"]))
    assert assigned["securityContext"].keys() == {"runAsNonRoot", "seccompProfile"}
    assert list(restricted_violations(assigned)) == []


def test_the_notes_say_what_it_does() -> None:
    """After an installation Helm shows the label, and what becomes of pods without a webhook."""
    for policy, said in (
        ("Fail", "such pods are not made"),
        ("Ignore", "such pods come without it"),
    ):
        notes = run_helm(
            "install", "models", CHART, "--namespace", NAMESPACE, "--dry-run=client",
            "--set", f"{ON[0]},webhook.failurePolicy={policy}",
        ).stdout.partition("NOTES:")[2]  # fmt: skip
        assert 'the label fusefs.csi/inject: "true"' in notes
        assert said in notes


def test_the_certificate_may_be_that_of_another_issuer() -> None:
    """Its Certificate fills the Secret that is mounted; it tells the API server whom to trust."""
    objects = render([], sets=[*ON, "webhook.certificate.mode=certManager"])
    assert not [o for o in objects if o["kind"] == "Secret"]
    certificate = pick(objects, "Certificate")
    spec = certificate["spec"]
    volume = _pod(objects)["volumes"][0]
    assert spec["secretName"] == volume["secret"]["secretName"]
    assert spec["dnsNames"] == [f"fusefs-webhook.{NAMESPACE}.svc"]
    assert spec["issuerRef"]["name"] == pick(objects, "Issuer")["metadata"]["name"]
    configuration = pick(objects, "MutatingWebhookConfiguration")
    assert configuration["metadata"]["annotations"] == {
        "cert-manager.io/inject-ca-from": f"{NAMESPACE}/{certificate['metadata']['name']}"
    }
    theirs = render([ALL])
    assert not [o for o in theirs if o["kind"] == "Issuer"]
    assert pick(theirs, "Certificate")["spec"]["issuerRef"] == {
        "name": "internal", "kind": "ClusterIssuer", "group": "cert-manager.io",
    }  # fmt: skip


def test_a_secret_of_the_users_is_mounted(tmp_path: Path) -> None:
    """With mode secret the chart makes no certificate, and passes on whom to trust."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "webhook:\n  enabled: true\n  certificate:\n    mode: secret\n    secretName: mine\n"
        "    caBundle: |\n" + "".join(f"      {line}\n" for line in PEM.splitlines())
    )
    objects = render([values])
    assert not _ours(objects) & {"Secret", "Certificate", "Issuer"}
    assert _pod(objects)["volumes"][0]["secret"]["secretName"] == "mine"
    assert base64.b64decode(_hook(objects)["clientConfig"]["caBundle"]).decode() == PEM
