"""Pods with volumes of real S3 servers, as kubelet drives them: credentials, sharing, outages."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness.csi import NOBODY, Node, open_node
from tests.harness.moto import Moto, allow
from tests.harness.weed import ACCESS_KEY, REGION, SECRET_KEY, Weed, open_weed
from tests.kubernetes.kubelet import Kubelet, Pod, open_kubelet
from tests.kubernetes.loader import open_loader

CONTENT = b"".join(number.to_bytes(8, "little") for number in range(1 << 20))
"""8 MiB, every eight bytes different."""

SECRETS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
AWS = "sts.amazonaws.com"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node whose plugin and mounter know no store and no credentials."""
    with open_node() as node:
        yield node


@pytest.fixture
def kubelet(node: Node) -> Iterator[Kubelet]:
    """Its kubelet; a repeated publish that fails for good fails the test."""
    with open_kubelet(node) as kubelet:
        yield kubelet
        assert kubelet.final == []


@pytest.fixture
def attributes(weed: Weed, bucket: str) -> dict[str, str]:
    """A volume of a bucket with one file."""
    weed.client().put_object(Bucket=bucket, Key="m/model.bin", Body=CONTENT)
    return {
        "source": f"s3://{bucket}/m",
        "s3.endpoint_url": weed.endpoint,
        "s3.region": REGION,
    }


def wait_until(is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Return once it is so; AssertionError if it never is."""
    until = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.05)


def test_kubelet_finds_the_driver(node: Node, kubelet: Kubelet) -> None:
    """The plugin registers itself: its name, and the endpoint that it listens at."""
    assert kubelet.register() == ("fusefs.csi", str(node.endpoint))
    wait_until(lambda: "kubelet registered fusefs.csi" in node.log)


def test_pods_with_a_secret_share_one_mount_and_one_download(
    node: Node, kubelet: Kubelet, attributes: dict[str, str]
) -> None:
    """Three pods of one namespace and source have one mount; each byte is fetched once."""
    pods = [Pod(attributes, name=f"server-{n}", secrets=SECRETS) for n in range(3)]
    targets = [kubelet.start(pod) for pod in pods]
    assert len(node.keys()) == 1
    for target in targets:
        assert Path(target, "model.bin").read_bytes() == CONTENT
    stats = json.loads(os.getxattr(targets[0], "user.fusefs.stats"))
    assert stats["counters"]["bytes_fetched"] <= len(CONTENT) * 1.1
    for pod in pods[:2]:
        kubelet.stop(pod)
    assert Path(targets[2], "model.bin").read_bytes() == CONTENT
    kubelet.stop(pods[2])
    assert node.keys() == []
    assert node.our_mounts() == []


def test_another_namespace_has_a_mount_of_its_own(
    node: Node, kubelet: Kubelet, attributes: dict[str, str]
) -> None:
    """The same secret in another namespace is another identity."""
    pods = [Pod(attributes, namespace=name, secrets=SECRETS) for name in ("a", "b")]
    for pod in pods:
        kubelet.start(pod)
    assert len(node.keys()) == 2
    for pod in pods:
        kubelet.stop(pod)


def test_a_volume_is_read_only_for_everybody(
    node: Node, kubelet: Kubelet, attributes: dict[str, str]
) -> None:
    """Writing is EROFS, for root as well."""
    pod = Pod(attributes, secrets=SECRETS)
    target = kubelet.start(pod)
    with pytest.raises(OSError, match="Read-only"):
        os.open(f"{target}/model.bin", os.O_WRONLY)
    kubelet.stop(pod)


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"secrets": {**SECRETS, "AWS_SECRET_ACCESS_KEY": "wrong"}}, "PERMISSION_DENIED", ""),
        ({"prefix": "missing"}, "NOT_FOUND", "missing"),
        ({"bucket": "no-such-bucket"}, "NOT_FOUND", "no-such-bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, "UNAVAILABLE", ""),
        ({"secrets": {}}, "UNAUTHENTICATED", "nodePublishSecretRef"),
    ],
)
def test_what_the_store_says_becomes_a_code(
    node: Node,
    kubelet: Kubelet,
    attributes: dict[str, str],
    change: dict[str, Any],
    code: str,
    sentence: str,
) -> None:
    """A refusal of the store has its own code and sentence; no secret is in it, nothing is left."""
    changed = dict(attributes)
    if "prefix" in change:
        changed["source"] += f"/{change['prefix']}"
    if "bucket" in change:
        changed["source"] = f"s3://{change['bucket']}"
    if "endpoint" in change:
        changed["s3.endpoint_url"] = change["endpoint"]
    pod = Pod(changed, secrets=change.get("secrets", SECRETS))
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.start(pod)
    error: Any = caught.value
    assert error.code().name == code, error.details()
    assert sentence in error.details()
    assert SECRET_KEY not in error.details()
    assert not os.path.lexists(pod.target)
    assert node.our_mounts() == []
    assert node.keys() == []


def test_secrets_show_nowhere(node: Node, kubelet: Kubelet, attributes: dict[str, str]) -> None:
    """No log line and no argument of a process holds a secret or a token; files are 0600."""
    pod = Pod(attributes, secrets=SECRETS, audience=AWS)
    kubelet.start(pod)
    folder = node.run / "keys" / node.keys()[0]
    assert stat.S_IMODE((folder / "environment.json").stat().st_mode) == 0o600
    assert SECRET_KEY not in (folder / "record.json").read_text()
    commands = b"".join(path.read_bytes() for path in _command_lines())
    assert SECRET_KEY.encode() not in commands
    kubelet.stop(pod)
    assert SECRET_KEY not in node.log
    assert "token-" not in node.log
    assert not folder.exists()


def _command_lines() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


def test_a_changed_secret_reaches_running_pods(
    node: Node, kubelet: Kubelet, attributes: dict[str, str]
) -> None:
    """The next publish renews a secret: a daemon with it takes over, and a load goes on."""
    pod = Pod(attributes, secrets={**SECRETS, "AWS_SESSION_TOKEN": ""})
    target = kubelet.start(pod)
    environment = node.run / "keys" / node.keys()[0] / "environment.json"
    daemon = _daemon_of(target)
    with open_loader(f"{target}/model.bin") as loader:
        loader.half()
        pod.secrets = dict(SECRETS)
        wait_until(lambda: "AWS_SESSION_TOKEN" not in environment.read_text())
        loader.go_on()
        loader.finish(CONTENT)
    wait_until(lambda: _daemon_of(target) != daemon)
    assert Path(target, "model.bin").read_bytes() == CONTENT
    kubelet.stop(pod)


def _daemon_of(target: str) -> int:
    pid: int = json.loads(os.getxattr(target, "user.fusefs.stats"))["pids"]["daemon"]
    return pid


def test_publishes_are_repeated_while_the_store_is_down_and_processes_end(
    node: Node, kubelet: Kubelet, tmp_path: Path
) -> None:
    """Every 0.2 s with a new token, with no store, over ends of plugin and mounter: none fails."""
    with open_weed(tmp_path / "own") as own:
        client = own.client()
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="model.bin", Body=CONTENT)
        pod = Pod(
            {
                "source": "s3://models",
                "s3.endpoint_url": own.endpoint,
                "s3.region": REGION,
            },
            secrets=SECRETS,
            audience=AWS,
        )
        target = kubelet.start(pod)
        assert Path(target, "model.bin").read_bytes() == CONTENT
        mounted = [row.device for row in node.our_mounts()]
    # From here on there is no store.
    for ended in ((), ("plugin",), ("mounter",)):
        for name in ended:
            _restart(node, name)
        enough = kubelet.repeated + 5
        wait_until(partial(_has_repeated, kubelet, enough))
    assert [row.device for row in node.our_mounts()] == mounted
    assert kubelet.final == []
    kubelet.stop(pod)
    assert node.our_mounts() == []
    assert node.keys() == []


def _has_repeated(kubelet: Kubelet, times: int) -> bool:
    return kubelet.repeated >= times


def _restart(node: Node, name: str) -> None:
    node.kill(name)
    node.start_plugin() if name == "plugin" else node.start_mounter()


@pytest.fixture
def at_amazon(moto: Moto) -> Iterator[Node]:
    """A node that finds Amazon's services at `moto`."""
    with open_node(environment={"AWS_ENDPOINT_URL_STS": moto.endpoint}) as node:
        yield node


def test_a_role_is_taken_on_with_the_pods_token(at_amazon: Node, moto: Moto) -> None:
    """The token lies where the SDK looks, it is renewed by each publish, and the bucket is read."""
    bucket, role = "of-a-role", "models"
    moto.client().create_bucket(Bucket=bucket)
    moto.client().put_object(Bucket=bucket, Key="model.bin", Body=CONTENT)
    trust = json.dumps(allow("sts:AssumeRoleWithWebIdentity", "*"))
    made = moto.client("iam").create_role(RoleName=role, AssumeRolePolicyDocument=trust)
    policy = json.dumps(allow("s3:*", "*"))
    moto.client("iam").put_role_policy(RoleName=role, PolicyName="it", PolicyDocument=policy)
    attributes = {
        "source": f"s3://{bucket}",
        "s3.endpoint_url": moto.endpoint,
        "s3.region": REGION,
        "engine.workers": "1",
        "roleArn": made["Role"]["Arn"],
    }
    pods = [Pod(attributes, name=f"server-{n}", audience=AWS) for n in range(2)]
    with open_kubelet(at_amazon) as kubelet:
        moto.excuse_next()
        targets = [kubelet.start(pod) for pod in pods]
        assert len(at_amazon.keys()) == 1
        assert Path(targets[1], "model.bin").read_bytes() == CONTENT
        token = at_amazon.run / "keys" / at_amazon.keys()[0] / "token"
        assert (stat.S_IMODE(token.stat().st_mode), token.stat().st_uid) == (0o600, NOBODY)
        seen = token.read_text()
        assert seen.startswith("token-")
        wait_until(lambda: token.read_text() not in (seen, ""))
        for pod in pods:
            kubelet.stop(pod)
        assert kubelet.final == []
    assert not token.exists()
    assert "token-" not in at_amazon.log
