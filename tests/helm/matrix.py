"""Every Helm × every Kubernetes × every values file: `python -m tests.helm.matrix`.

`make check-chart` runs it; `make test` has a sample. Exit status 1 and a line for each violation.
"""

from __future__ import annotations

import itertools
import sys

from tests.helm.chart import CI_VALUES, KUBERNETES, ChartRefused, lint, render
from tests.helm.checks import violations
from tests.helm.programs import HELMS


def main() -> int:
    """Return the exit status."""
    found: list[str] = []
    count = 0
    for version, kube, file in itertools.product(HELMS, KUBERNETES, CI_VALUES):
        case = f"Helm {version}, Kubernetes {kube}, {file.name}"
        try:
            lint(file, version=version, kube=kube)
            found += [
                f"{case}: {text}"
                for text in violations(render([file], version=version, kube=kube), kube)
            ]
        except ChartRefused as error:
            found.append(f"{case}: {error}")
        count += 1
    print("\n".join(found) or f"{count} renderings, nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
