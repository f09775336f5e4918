"""Wrong volumes, targets and circumstances: the exact gRPC code, a sentence, and nothing left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness.csi import Client, Node, block_capability, mount_capability

Code = grpc.StatusCode


def _publish(target: str, attributes: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "volume_id": "bad-input",
        "target_path": target,
        "volume_capability": mount_capability(),
        "volume_context": attributes,
        **more,
    }


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"volume_context": {}}, Code.INVALID_ARGUMENT, "source"),
        ({"volume_context": {"source": "nonsense"}}, Code.INVALID_ARGUMENT, "scheme"),
        ({"volume_context": {"source": "s3://b", "x": "1"}}, Code.INVALID_ARGUMENT, "unknown"),
        ({"volume_context": {"source": "file:///etc"}}, Code.INVALID_ARGUMENT, "below"),
        ({"volume_context": {"source": "s3://b"}}, Code.UNAUTHENTICATED, "nodePublishSecretRef"),
        (
            {"volume_context": {"source": "s3://b"}, "secrets": {"password": "hush"}},
            Code.INVALID_ARGUMENT,
            "AWS_ACCESS_KEY_ID",
        ),
        (
            {"volume_context": {"source": "s3://b", "roleArn": "arn:x"}},
            Code.UNAUTHENTICATED,
            "podInfoOnMount",
        ),
        ({"volume_capability": block_capability()}, Code.FAILED_PRECONDITION, "block"),
        (
            {"volume_capability": mount_capability(fs_type="ext4")},
            Code.FAILED_PRECONDITION,
            "ext4",
        ),
        (
            {"volume_capability": mount_capability(flags=["fast"])},
            Code.INVALID_ARGUMENT,
            "fast",
        ),
        (
            {"volume_capability": mount_capability(group="wheel")},
            Code.INVALID_ARGUMENT,
            "mount.gid",
        ),
        ({"volume_id": "x" * 129}, Code.INVALID_ARGUMENT, "128"),
        ({"target_path": "relative/path"}, Code.INVALID_ARGUMENT, "absolute"),
    ],
)
def test_a_wrong_volume_is_refused(
    node: Node,
    client: Client,
    attributes: dict[str, str],
    change: dict[str, Any],
    code: grpc.StatusCode,
    sentence: str,
) -> None:
    """The code is the documented one, the sentence names what is wrong, and no target is left."""
    target = node.target()
    answer = client.refusal("NodePublishVolume", **(_publish(target, attributes) | change))
    assert answer[0] is code
    assert sentence in answer[1]
    assert "hush" not in answer[1] + node.log
    assert not os.path.lexists(target)
    assert node.keys() == []


def test_a_source_that_is_not_there_is_not_found(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """What only the store knows comes from the mounter with its own code, and nothing is left."""
    target = node.target()
    missing = {"source": f"{attributes['source']}/missing"}
    code, sentence = client.refusal("NodePublishVolume", **_publish(target, missing))
    assert code is Code.NOT_FOUND
    assert "missing" in sentence
    assert not os.path.lexists(target)
    assert node.our_mounts() == []
    assert node.keys() == []


def test_a_source_behind_a_link_is_refused(node: Node, client: Client, model: Path) -> None:
    """A link below the allowed folder leads nowhere else: not to other volumes' credentials."""
    link = model / "link"
    link.symlink_to(node.run / "keys")
    try:
        attributes = {"source": f"file://{link}"}
        code, sentence = client.refusal("NodePublishVolume", **_publish(node.target(), attributes))
    finally:
        link.unlink()
    assert code is Code.INVALID_ARGUMENT
    assert "symbolic link" in sentence
    assert node.our_mounts() == []
    assert node.keys() == []


def test_a_file_at_the_target_is_refused(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """A target that is a file stays as it is."""
    target = Path(node.target())
    target.write_text("mine")
    code, sentence = client.refusal("NodePublishVolume", **_publish(str(target), attributes))
    assert code is Code.FAILED_PRECONDITION
    assert "no directory" in sentence
    assert target.read_text() == "mine"
    target.unlink()


def test_a_missing_parent_is_refused(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """Kubelet makes the parent; without it something is wrong."""
    target = f"{node.root}/nobody/made/this"
    code, sentence = client.refusal("NodePublishVolume", **_publish(target, attributes))
    assert code is Code.FAILED_PRECONDITION
    assert "parent" in sentence


def test_a_foreign_mount_at_the_target_is_refused(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """What somebody else mounted at the target is neither hidden nor taken away."""
    target = node.target()
    os.mkdir(target)
    mount_tmpfs(target)
    try:
        code, sentence = client.refusal("NodePublishVolume", **_publish(target, attributes))
        assert code is Code.ALREADY_EXISTS
        assert "tmpfs" in sentence
        assert [row.fstype for row in node.our_mounts()] == ["tmpfs"]
    finally:
        unmount(target)
        os.rmdir(target)


@pytest.mark.parametrize(
    "change",
    [
        {"volume_id": "another"},
        {"readonly": True},
        {"extra": {"tree.ttl_s": "5"}},
    ],
)
def test_another_volume_at_a_published_target_already_exists(
    node: Node, client: Client, attributes: dict[str, str], change: dict[str, Any]
) -> None:
    """The same target with another id, readOnly or attributes is refused; the volume stays."""
    target = node.target()
    first = _publish(target, attributes)
    client.call("NodePublishVolume", **first)
    try:
        more = {name: value for name, value in change.items() if name != "extra"}
        other = first | more | {"volume_context": attributes | change.get("extra", {})}
        code, sentence = client.refusal("NodePublishVolume", **other)
        assert code is Code.ALREADY_EXISTS
        assert "unpublish" in sentence
        assert Path(target, "model.bin").stat().st_size == 2 << 20
    finally:
        client.call("NodeUnpublishVolume", volume_id="bad-input", target_path=target)


def test_one_name_with_other_options_is_another_mount(
    node: Node, client: Client, attributes: dict[str, str]
) -> None:
    """Two volumes of one id whose options differ, at two targets, are served as each says."""
    targets = [node.target(), node.target()]
    client.call("NodePublishVolume", **_publish(targets[0], attributes))
    narrow = attributes | {"mount.umask": "077"}
    client.call("NodePublishVolume", **_publish(targets[1], narrow))
    modes = [Path(target, "model.bin").stat().st_mode & 0o777 for target in targets]
    assert modes == [0o444, 0o400]
    assert len(node.keys()) == 2
    for target in targets:
        client.call("NodeUnpublishVolume", volume_id="bad-input", target_path=target)
    assert node.keys() == []


def mount_tmpfs(path: str) -> None:
    """Mount something that is none of ours."""
    import subprocess

    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True, timeout=30)


def unmount(path: str) -> None:
    """Take it away again."""
    import subprocess

    subprocess.run(["umount", path], check=True, timeout=30)
