"""Writes what follows from the chart and the table of settings: `python -m tests.helm.pages`.

The part `settings` of helm/fusefs/values.schema.json, from fusefs/config.py; helm/fusefs/README.md,
from the schema and values.yaml; deploy/kubernetes/*.yaml, rendered. Tests compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fusefs.config import COMPONENTS, SETTINGS, Setting
from fusefs.values import BLOCK, FLAG, OCTAL
from tests.helm.chart import CHART, ROOT, render_text

SCHEMA = CHART / "values.schema.json"
VALUES = CHART / "values.yaml"
README = CHART / "README.md"
DEPLOY = ROOT / "deploy" / "kubernetes"

DEPLOY_VERSION = "1.31"
"""In the middle of what is supported: what newer clusters only have is left out of deploy/."""

_SOURCE = re.compile(r"^# Source: fusefs/templates/(\S+)$", re.MULTILINE)
_BOUNDS = re.compile(r"a (?:whole number|number of seconds) from (\S+) to (\S+)")
_SIZE = {"type": ["string", "integer"], "pattern": "^[0-9]+([KMGTkmgt](i?[Bb])?|[Bb])?$"}

_HEAD = """\
# The chart fusefs

Buckets as volumes, read at the speed of the link: the CSI driver of fusefs. How to install, size,
upgrade and mend it is in `docs/kubernetes/`; what its values are is here. This page is made from
`values.schema.json` and `values.yaml` by `python -m tests.helm.pages`, and compared by a test.

```
helm install fusefs helm/fusefs --namespace fusefs --create-namespace \\
    --set image.registry=registry.example.com
```

A key that is not here is refused by name. Pods, volumes and sidecars to start from are in
`examples/`; manifests without Helm in `deploy/kubernetes/`.

| value | default | what it is |
|---|---|---|
"""


def settings_schema() -> dict[str, Any]:
    """The schema of the value `settings`: the same table that `fusefs mount --help` shows."""
    components = {
        component: {
            "description": " ".join((cls.__doc__ or "").split()),
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                name.partition(".")[2]: _setting_schema(row)
                for name, row in SETTINGS.items()
                if name.startswith(f"{component}.")
            },
        }
        for component, cls in COMPONENTS.items()
    }
    return {
        "description": "settings of all mounts, as in docs/configuration.md; a volume's own come"
        " before them",
        "type": "object",
        "additionalProperties": False,
        "properties": components,
    }


def _setting_schema(row: Setting) -> dict[str, Any]:
    written = row.kind.written
    described = {"description": f"{row.help}: {written} ({row.default_text})"}
    if row.kind is FLAG:
        return {**described, "type": "boolean"}
    if row.kind is OCTAL:
        return {**described, "type": "string", "pattern": "^[0-7]{1,4}$"}
    if row.kind is BLOCK or written.startswith("a size "):
        return {**described, **_SIZE}
    if bounds := _BOUNDS.fullmatch(written):
        kind = "integer" if "whole" in written else "number"
        low, high = (json.loads(bound) for bound in bounds.groups())
        return {**described, "type": kind, "minimum": low, "maximum": high}
    if written.startswith("one of "):
        return {**described, "enum": written.removeprefix("one of ").split(", ")}
    return {**described, "type": "string", "minLength": 1}


def schema_text() -> str:
    """values.schema.json, with the settings as they are now."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    schema["properties"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def readme_text() -> str:
    """The chart's README.md."""
    schema = json.loads(schema_text())
    values = yaml.safe_load(VALUES.read_text("utf-8"))
    return _HEAD + "".join(_rows(schema["properties"], values, ""))


def _rows(properties: Mapping[str, Any], values: Any, prefix: str) -> Iterator[str]:
    for name, about in properties.items():
        path = f"{prefix}{name}"
        value = values.get(name) if isinstance(values, dict) else None
        inner = about.get("properties")
        if inner and not path.startswith("settings."):
            yield f"| **`{path}`** | | {_cell(about)} |\n"
            yield from _rows(inner, value, f"{path}.")
        else:
            default = json.dumps(value, ensure_ascii=False) if value is not None else ""
            default = f"`{default}`" if default else ""
            yield f"| `{path}` | {default} | {_cell(about)} |\n"


def _cell(about: Mapping[str, Any]) -> str:
    return str(about["description"]).replace("|", "\\|")


def deploy_files() -> dict[str, str]:
    """Every file of deploy/kubernetes/ that is rendered, by name: one for each template."""
    text = render_text([], kube=DEPLOY_VERSION, flags=("--skip-tests",))
    head = "# Rendered from helm/fusefs by `python -m tests.helm.pages`: change it there.\n"
    files: dict[str, str] = {}
    for document in text.split("\n---\n"):
        found = _SOURCE.search(document)
        body = _SOURCE.sub("", document).removeprefix("---").strip()
        body = body.replace(
            "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl"
        )
        if found is None or not body:
            continue
        before = files.get(found[1], head)
        files[found[1]] = before + ("---\n" if before != head else "") + body + "\n"
    files["kustomization.yaml"] = _kustomization(sorted(files))
    return files


def _kustomization(names: list[str]) -> str:
    head = "# Rendered from helm/fusefs by `python -m tests.helm.pages`: change it there.\n"
    resources = "".join(f"  - {name}\n" for name in ["namespace.yaml", *names])
    return (
        f"{head}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"namespace: fusefs\nresources:\n{resources}"
    )


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), "utf-8")
    README.write_text(readme_text(), "utf-8")
    for _name, _text in deploy_files().items():
        (DEPLOY / _name).write_text(_text, "utf-8")
