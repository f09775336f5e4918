"""Renders the chart as its users do: `helm template` of a version of Helm for one of Kubernetes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.helm.programs import NEWEST, helm

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "fusefs"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

KUBERNETES = ("1.29", "1.31", "1.33", "1.35", "1.37")
"""From the first that the chart supports to the newest with a schema."""

NAMESPACE = "fusefs"
EXTRA_APIS = ("monitoring.coreos.com/v1",)
TIMEOUT_S = 60.0

Object = dict[str, Any]


class ChartRefused(Exception):
    """Helm would not render; the text is what it said."""


def run_helm(
    *arguments: str | Path, version: str = NEWEST, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Helm, with folders of its own nowhere. Raises ChartRefused unless `check` is false."""
    done = subprocess.run(
        [helm(version), *map(str, arguments)],
        cwd=ROOT,
        env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if check and done.returncode != 0:
        raise ChartRefused(done.stderr)
    return done


def render_text(
    values: Sequence[Path],
    *,
    version: str = NEWEST,
    kube: str = "1.35",
    sets: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> str:
    """What `helm template` prints. Raises ChartRefused."""
    arguments = [flag for file in values for flag in ("-f", str(file))]
    arguments += [flag for text in sets for flag in ("--set", text)]
    arguments += [flag for api in EXTRA_APIS for flag in ("--api-versions", api)]
    return run_helm(
        "template", "fusefs", CHART, "--namespace", NAMESPACE, "--kube-version", f"{kube}.0",
        *arguments, *flags, version=version,
    ).stdout  # fmt: skip


def render(
    values: Sequence[Path],
    *,
    version: str = NEWEST,
    kube: str = "1.35",
    sets: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> list[Object]:
    """The objects of `render_text`."""
    text = render_text(values, version=version, kube=kube, sets=sets, flags=flags)
    return load_objects(text)


def load_objects(text: str) -> list[Object]:
    """All objects of a YAML text; empty documents are none."""
    return [document for document in yaml.safe_load_all(text) if document]


def pick(objects: Sequence[Object], kind: str, ending: str = "") -> Object:
    """The one object of this kind whose name ends so."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(ending)]
    assert len(found) == 1, [(o["kind"], o["metadata"]["name"]) for o in found]
    return found[0]


def lint(values: Path, *, version: str = NEWEST, kube: str = "1.35") -> None:
    """Run `helm lint --strict`. Raises ChartRefused with what it complained of."""
    done = run_helm(
        "lint", CHART, "--strict", "--kube-version", f"{kube}.0", "-f", values,
        version=version, check=False,
    )  # fmt: skip
    if done.returncode != 0 or "WARNING" in done.stdout:
        raise ChartRefused(done.stdout + done.stderr)
