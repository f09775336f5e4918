"""The environment of a volume's daemon: the mounter's own, less whose credentials it is not.

An SDK takes whatever credentials it finds. So a volume that does not use the driver's identity sees
none of it: no variable, no file of the image, no metadata server of the node, which would make it
the node's identity without anybody's intent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fusefs.kubernetes.records import Record, read_environment

_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "GCE_", "CLOUDSDK_", "MSI_", "IDENTITY_")
_NAMES = frozenset({"REDISCLI_AUTH"})

_KEPT = frozenset(
    {
        "AWS_CA_BUNDLE",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_STS",
        "AWS_REGION",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
    }
)
"""Where servers are is no identity."""

_NOBODY = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "CLOUDSDK_CONFIG": os.devnull,
    "NO_GCE_CHECK": "true",
    "HOME": "/nonexistent",
}
"""What tells each SDK to look no further than at what it is given."""


def environment_for(
    record: Record, folder: Path, own: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables for the daemon of a key whose files are in `folder`. Raises OSError."""
    if record.inherit:
        return {**own, **read_environment(folder)}
    left = {name: value for name, value in own.items() if not _is_identity(name)}
    return {**left, **_NOBODY, **read_environment(folder)}


def _is_identity(name: str) -> bool:
    return (name.startswith(_PREFIXES) or name in _NAMES) and name not in _KEPT
