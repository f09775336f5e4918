"""What a caller may ask of a volume, checked the same by the services of node and controller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fusefs.errors import ConfigError, Unsupported
from fusefs.kubernetes.wire import csi

VOLUME_ID_BYTES_MAX = 128
"""The specification's limit on strings."""

_MODES = csi("VolumeCapability").DESCRIPTOR.nested_types_by_name["AccessMode"].enum_types_by_name


def needed(value: str, what: str) -> str:
    """`value`, if it was given. Raises ConfigError."""
    if not value:
        raise ConfigError(f"{what} is missing in the request")
    return value


def check_capability(capability: Any) -> None:
    """Return if a volume can be had like this. Raises ConfigError or Unsupported.

    Every access mode is: what a claim says of writing is a wish, and the mount is read-only.
    """
    if capability.WhichOneof("access_type") is None:
        raise ConfigError("volume_capability has no access_type: it must be mount")
    if capability.WhichOneof("access_type") == "block":
        raise Unsupported("a bucket is no block device: use volumeMode: Filesystem")
    if capability.access_mode.mode not in _MODES["Mode"].values_by_number:
        raise ConfigError("volume_capability has an access mode that nobody knows")
    if capability.access_mode.mode == 0:
        raise ConfigError("volume_capability has no access mode")
    if capability.mount.fs_type not in ("", "fuse", "fuse.fusefs", "fusefs"):
        raise Unsupported(
            f"the volume's fsType {capability.mount.fs_type[:40]!r} cannot be had: leave it out"
        )


def check_capabilities(capabilities: Iterable[Any]) -> None:
    """Return if a volume can be had in all these ways. Raises like `check_capability`."""
    found = list(capabilities)
    if not found:
        raise ConfigError("volume_capabilities are missing in the request")
    for capability in found:
        check_capability(capability)
