"""The checks of csi-sanity 5.5 (kubernetes-csi/csi-test, pkg/sanity), each with real mounts.

A port: the Go program is no dependency. `IDEMPOTENT` and the names of the checks are its own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fusefs.kubernetes.controller import is_volume_id
from fusefs.mount import kernel
from tests.harness.csi import Client, Node, block_capability, mount_capability
from tests.kubernetes.conftest import CONTENT

IDEMPOTENT = 10
"""How often csi-sanity repeats a call that must be idempotent (IdempotentCount)."""

WRITTEN_S = 20.0
"""A daemon writes its figures down once a second, and a busy machine makes it late."""

SIZE = 10 << 30
"""TestVolumeSize."""

Code = grpc.StatusCode


@pytest.fixture
def volume(client: Client, attributes: dict[str, str]) -> Any:
    """A volume made by the controller."""
    made = client.call(
        "CreateVolume",
        name="sanity-node",
        volume_capabilities=[mount_capability()],
        parameters=attributes,
    )
    return made.volume


@pytest.fixture
def published(node: Node, client: Client, volume: Any) -> Iterator[str]:
    """That volume at a target, which goes afterwards."""
    target = node.target()
    client.call("NodePublishVolume", **_publish(volume, target))
    yield target
    client.call("NodeUnpublishVolume", volume_id=volume.volume_id, target_path=target)
    assert not os.path.lexists(target)


def _publish(volume: Any, target: str) -> dict[str, Any]:
    return {
        "volume_id": volume.volume_id,
        "target_path": target,
        "volume_capability": mount_capability(),
        "volume_context": dict(volume.volume_context),
    }


def test_plugin_info_has_a_name_that_the_specification_allows(client: Client) -> None:
    """The name has at most 63 characters and is in domain name notation."""
    info = client.call("GetPluginInfo")
    assert info.name == "fusefs.csi"
    assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9-._]{0,61}[a-zA-Z]", info.name)
    assert info.vendor_version


def test_plugin_capabilities_are_known_ones(client: Client) -> None:
    """There is a controller service, and nothing that csi-sanity does not know."""
    capabilities = client.call("GetPluginCapabilities").capabilities
    assert [capability.service.type for capability in capabilities] == [1]


def test_probe_is_ready(client: Client) -> None:
    """A plugin that answers is ready."""
    assert client.call("Probe").ready.value is True


def test_controller_capabilities_are_create_and_delete(client: Client) -> None:
    """The controller creates and deletes, no more."""
    capabilities = client.call("ControllerGetCapabilities").capabilities
    assert [capability.rpc.type for capability in capabilities] == [1]


def test_create_volume_is_idempotent(client: Client, attributes: dict[str, str]) -> None:
    """The same name and size give the same volume, whose capacity is 0 or what was asked."""
    made = {
        client.call(
            "CreateVolume",
            name="sanity-create",
            volume_capabilities=[mount_capability()],
            capacity_range={"required_bytes": SIZE, "limit_bytes": SIZE * 2},
            parameters=attributes,
        ).volume.volume_id
        for _ in range(IDEMPOTENT)
    }
    assert len(made) == 1
    assert is_volume_id(made.pop())


def test_create_volume_takes_a_long_name(client: Client) -> None:
    """A name of 128 characters is fine, and the id is short enough."""
    made = client.call("CreateVolume", name="n" * 128, volume_capabilities=[mount_capability()])
    assert 0 < len(made.volume.volume_id) <= 128
    assert made.volume.capacity_bytes == 0


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("CreateVolume", {"volume_capabilities": [mount_capability()]}),
        ("CreateVolume", {"name": "without"}),
        ("DeleteVolume", {}),
        ("ValidateVolumeCapabilities", {"volume_capabilities": [mount_capability()]}),
        ("ValidateVolumeCapabilities", {"volume_id": "ffs1-x"}),
        ("NodePublishVolume", {}),
        ("NodePublishVolume", {"volume_id": "id"}),
        ("NodePublishVolume", {"volume_id": "id", "target_path": "/tmp/x/target"}),
        ("NodeUnpublishVolume", {}),
        ("NodeUnpublishVolume", {"volume_id": "id"}),
        ("NodeGetVolumeStats", {}),
        ("NodeGetVolumeStats", {"volume_id": "id"}),
    ],
)
def test_what_is_missing_is_an_invalid_argument(
    client: Client, method: str, fields: dict[str, Any]
) -> None:
    """A call without a required field is InvalidArgument, and says which."""
    code, sentence = client.refusal(method, **fields)
    assert code is Code.INVALID_ARGUMENT
    assert "missing" in sentence


def test_deleting_what_is_not_there_succeeds(client: Client) -> None:
    """DeleteVolume of an unknown id is OK, as often as one likes."""
    for _ in range(IDEMPOTENT):
        client.call("DeleteVolume", volume_id="reallyfakevolumeid")


def test_capabilities_of_an_unknown_volume_are_not_found(client: Client) -> None:
    """ValidateVolumeCapabilities knows its own ids by their check digits."""
    code, _ = client.refusal(
        "ValidateVolumeCapabilities",
        volume_id="reallyfakevolumeid",
        volume_capabilities=[mount_capability()],
    )
    assert code is Code.NOT_FOUND


def test_capabilities_of_a_volume_are_confirmed(client: Client, volume: Any) -> None:
    """What was created can be mounted; it is no block device."""
    ask = {"volume_id": volume.volume_id}
    answer = client.call(
        "ValidateVolumeCapabilities", **ask, volume_capabilities=[mount_capability()]
    )
    assert len(answer.confirmed.volume_capabilities) == 1
    answer = client.call(
        "ValidateVolumeCapabilities", **ask, volume_capabilities=[block_capability()]
    )
    assert not answer.HasField("confirmed")
    assert "block" in answer.message


def test_node_info_names_the_node(client: Client) -> None:
    """NodeGetInfo has an id and no negative limit."""
    info = client.call("NodeGetInfo")
    assert info.node_id == "node-1"
    assert info.max_volumes_per_node >= 0


def test_node_capabilities_are_known_ones(client: Client) -> None:
    """Stats, condition and mount group; no staging."""
    capabilities = client.call("NodeGetCapabilities").capabilities
    assert [capability.rpc.type for capability in capabilities] == [2, 4, 6]


@pytest.mark.parametrize("times", [1, 2, IDEMPOTENT])
def test_publish_and_unpublish_are_idempotent(
    node: Node, client: Client, volume: Any, times: int
) -> None:
    """However often a volume is published and unpublished, it is there once, and then gone."""
    target = node.target()
    for _ in range(times):
        client.call("NodePublishVolume", **_publish(volume, target))
    assert [row.mountpoint for row in kernel.mount_rows()].count(target) == 1
    assert Path(target, "model.bin").read_bytes() == CONTENT
    for _ in range(times):
        client.call("NodeUnpublishVolume", volume_id=volume.volume_id, target_path=target)
    assert not os.path.lexists(target)
    assert node.our_mounts() == []


def test_unpublish_removes_a_target_that_was_never_published(node: Node, client: Client) -> None:
    """NodeUnpublishVolume of what is not there is OK, and a bare folder there goes."""
    target = node.target()
    os.mkdir(target)
    client.call("NodeUnpublishVolume", volume_id="reallyfakevolumeid", target_path=target)
    assert not os.path.lexists(target)


def test_stats_of_an_unknown_volume_are_not_found(client: Client) -> None:
    """NodeGetVolumeStats of nobody's volume is NotFound."""
    code, _ = client.refusal(
        "NodeGetVolumeStats", volume_id="reallyfakevolumeid", volume_path="some/path"
    )
    assert code is Code.NOT_FOUND


def test_stats_at_a_wrong_path_are_not_found(client: Client, volume: Any, published: str) -> None:
    """NodeGetVolumeStats of a known volume elsewhere is NotFound."""
    code, _ = client.refusal(
        "NodeGetVolumeStats", volume_id=volume.volume_id, volume_path="some/path"
    )
    assert code is Code.NOT_FOUND
    assert os.path.lexists(published)


def test_stats_come_from_memory(client: Client, volume: Any, published: str) -> None:
    """NodeGetVolumeStats has the sizes of what is known, nothing available, and no trouble."""
    os.stat(f"{published}/model.bin")
    until = time.monotonic() + WRITTEN_S
    while True:
        stats = client.call("NodeGetVolumeStats", volume_id=volume.volume_id, volume_path=published)
        if stats.usage[0].used or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert [usage.used for usage in stats.usage] == [len(CONTENT), 1]
    assert [usage.unit for usage in stats.usage] == [1, 2]
    assert [usage.available for usage in stats.usage] == [0, 0]
    assert all(usage.total == usage.used for usage in stats.usage)
    assert not stats.volume_condition.abnormal
    assert stats.volume_condition.message


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("Node", "NodeStageVolume"),
        ("Node", "NodeUnstageVolume"),
        ("Node", "NodeExpandVolume"),
        ("Controller", "ControllerPublishVolume"),
        ("Controller", "CreateSnapshot"),
        ("Controller", "ListVolumes"),
    ],
)
def test_what_is_not_advertised_is_unimplemented(client: Client, service: str, method: str) -> None:
    """Methods that no capability promises answer Unimplemented."""
    call: Any = client.channel.unary_unary(f"/csi.v1.{service}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10, wait_for_ready=True)
    assert caught.value.code() is Code.UNIMPLEMENTED
