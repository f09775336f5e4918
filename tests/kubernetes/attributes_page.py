"""Writes docs/kubernetes/attributes.md from the plugin's tables.

`python -m tests.kubernetes.attributes_page`
"""

from __future__ import annotations

from pathlib import Path

from fusefs.kubernetes.answers import CODES
from fusefs.kubernetes.attributes import ATTRIBUTES, volume_settings
from fusefs.kubernetes.credentials import SECRET_KEYS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "kubernetes" / "attributes.md"

_HEAD = """\
# Attributes of a volume

What stands in `volumeAttributes` of a PersistentVolume or an inline volume, or in `parameters` of
a StorageClass. Generated from the tables of the plugin (`fusefs/kubernetes/attributes.py`) and
compared with them by a test; `python -m tests.kubernetes.attributes_page` writes it again. A name
that nobody knows is an error that says so.

Volumes are read-only, whatever their access mode: every mode is accepted, and writing is EROFS.
Volumes of one node with the same source, the same settings and the same identity share one mount
and one download.
"""

_SECRETS = """\

## Keys of the secret

Of the secret that `nodePublishSecretRef` names. They are the variables that the SDKs know, but for
`GOOGLE_APPLICATION_CREDENTIALS_JSON`, which is the content of a key file. A volume with a secret
shares its mount only within its namespace. When the secret changes, running pods get the new one
with kubelet's next repetition of the publish (a minute or two): readers wait for a second or so,
and none fails.
"""

_SETTINGS = """\

## Settings

Every name with a dot is a setting of [the configuration](../configuration.md), written as there; so
is `name=value` in `mountOptions`. Settings that a volume cannot make: `mount.allow_other`,
`mount.grace_s`, `log.*`, `s3.profile`, `redis.ca_file`.
"""

_CODES = """\

## What the plugin answers when it refuses

Each refusal is one sentence, which `kubectl describe pod` shows.
"""


def attributes_page() -> str:
    """The page's text."""
    parts = [_HEAD, "\n| attribute | written | meaning |\n|---|---|---|\n"]
    parts += [f"| `{name}` | {row.written} | {row.help} |\n" for name, row in ATTRIBUTES.items()]
    parts += [_SECRETS, "\n| key | sources |\n|---|---|\n"]
    parts += [f"| `{name}` | `{scheme}://` |\n" for name, scheme in SECRET_KEYS.items()]
    parts += [_SETTINGS, "\n| setting | default | meaning |\n|---|---|---|\n"]
    parts += [
        f"| `{name}` | {row.default_text} | {row.help} |\n"
        for name, row in volume_settings().items()
    ]
    parts += [_CODES, "\n| code | when |\n|---|---|\n"]
    parts += [f"| {code.name} | {when} |\n" for _, code, when in CODES]
    parts.append("| DEADLINE_EXCEEDED | the caller's time was up before an answer |\n")
    parts.append("| ABORTED | another call is at work on the same target |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(attributes_page(), "utf-8")
