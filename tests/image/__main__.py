"""The image, built and run: `python -m tests.image [--store FOLDER]`, as root; `make check-image`.

Builds it without a registry, says how large it is, and runs it under runc as pods do: unprivileged
for a copy, privileged as the sidecar of an application that is not. It works in a mount namespace
of its own, so that whatever fails, nothing stays mounted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.helm.chart import ROOT
from tests.image.build import BASE, IMAGE, Builder
from tests.image.containers import Image
from tests.image.runs import RUNS

_INSIDE = "FUSEFS_CHECK_INSIDE"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=__doc__)
    parser.add_argument("--store", type=Path, help="keep what is built here, and use it again")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("containers and mounts need root")
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        again = [sys.executable, "-m", "tests.image", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *again])
    del os.environ[_INSIDE]
    with tempfile.TemporaryDirectory(prefix="fusefs-image-") as folder:
        work = Path(folder)
        builder = Builder((arguments.store or work / "store").absolute())
        builder.prepare()
        builder.base()
        builder.image()
        sizes = builder.size_bytes()
        print(
            f"{IMAGE} is {sizes[IMAGE] / 1e6:.0f} MB, of which {sizes[BASE] / 1e6:.0f} MB are its"
            " base"
        )
        (work / "runs").mkdir()
        image = Image(builder.unpack(), builder.config(), work / "runs")
        for run in RUNS:
            print(f"{run.__name__}: {run.__doc__}", flush=True)
            run(image, builder.config(), work)
    print(f"all {len(RUNS)} runs are good")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
