"""Settings for all volumes of a node: from the driver's own file and environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fusefs.errors import ConfigError
from fusefs.kubernetes.attributes import Rules, parse_volume
from tests.harness.csi import Node, mount_capability, open_node
from tests.kubernetes.conftest import CONTENT

MIB = 1 << 20


def test_a_volume_has_the_drivers_settings_and_its_own_before_them() -> None:
    """What a volume does not say is what the node's administrator said."""
    rules = Rules(defaults={"engine.memory": 64 * MIB, "tree.ttl_s": 5.0, "log.level": "debug"})
    context = {"source": "s3://b", "authentication": "anonymous", "engine.memory": "32M"}
    config = parse_volume(context, has_secret=False, rules=rules).config
    assert config.engine.memory == 32 * MIB
    assert config.tree.ttl_s == 5.0
    assert config.log.level == "debug"
    assert config.s3.anonymous


def test_pods_of_other_users_can_read_whatever_the_defaults_say() -> None:
    """The one setting that is the driver's own is not lost to a default."""
    rules = Rules(defaults={"mount.allow_other": False})
    context = {"source": "s3://b", "authentication": "anonymous"}
    assert parse_volume(context, has_secret=False, rules=rules).config.mount.allow_other


def test_the_drivers_endpoint_goes_with_the_drivers_identity() -> None:
    """An administrator may name the server; a volume with the driver's credentials may not."""
    rules = Rules(allow_driver_identity=True, defaults={"s3.endpoint_url": "https://s3.lan"})
    context = {"source": "s3://b", "authentication": "driver"}
    config = parse_volume(context, has_secret=False, rules=rules).config
    assert config.s3.endpoint_url == "https://s3.lan"
    with pytest.raises(ConfigError, match=r"cannot set s3\.endpoint_url"):
        parse_volume({**context, "s3.endpoint_url": "https://x"}, has_secret=False, rules=rules)


def _publish(node: Node, target: str, attributes: dict[str, str]) -> None:
    with node.client() as client:
        client.call(
            "NodePublishVolume",
            volume_id="defaults",
            target_path=target,
            volume_capability=mount_capability(),
            volume_context=attributes,
        )


def _memory_limit(target: str) -> int:
    stats = json.loads(os.getxattr(target, "user.fusefs.stats"))
    limit: int = stats["memory_limit_bytes"]
    return limit


def test_other_defaults_hold_for_new_mounts_and_trouble_no_old_one(model: Path) -> None:
    """A plugin that comes back with other settings goes on renewing what is mounted."""
    attributes = {"source": f"file://{model}"}
    environment = {"FUSEFS_ENGINE_MEMORY": "32M"}
    with open_node(f"--file-root={model}", environment=environment) as node:
        old, new = node.target(), node.target()
        _publish(node, old, attributes)
        assert _memory_limit(old) == 32 * MIB
        node.terminate("plugin")
        node.environment = {**node.environment, "FUSEFS_ENGINE_MEMORY": "64M"}
        node.start_plugin()
        _publish(node, old, attributes)
        _publish(node, new, attributes)
        assert _memory_limit(old) == 32 * MIB
        assert _memory_limit(new) == 64 * MIB
        assert (Path(old) / "model.bin").read_bytes() == CONTENT
        assert "keeps" not in node.log
        with node.client() as client:
            for target in (old, new):
                client.call("NodeUnpublishVolume", volume_id="defaults", target_path=target)
