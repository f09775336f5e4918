"""The Dockerfile, without building it: `make check-image` does that, and runs what it built."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm.chart import ROOT

IMAGE = ROOT / "helm" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text("utf-8")


def _hadolint(file: Path) -> str:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_dockerfile_is_clean() -> None:
    """Hadolint has nothing to say, and what it is told to pass over has a reason."""
    assert _hadolint(IMAGE / "Dockerfile") == ""
    ignored = set(re.findall(r"hadolint ignore=(\S+)", DOCKERFILE))
    assert ignored == {"DL3006", "DL3008"}  # the base is an argument; Debian keeps one version


def test_hadolint_would_say_so(tmp_path: Path) -> None:
    """A Dockerfile with a mistake is not clean."""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && sudo ls\n")
    assert "DL3007" in _hadolint(bad)


def test_packages_are_pinned_by_hash() -> None:
    """Whatever comes from an index comes by its hash; the rest is built or installed without."""
    joined = DOCKERFILE.replace("\\\n", " ")
    commands = re.findall(r"\bpip (?:wheel|install|--python \S+ install)[^&\n]*", joined)
    assert len(commands) == 4
    for command in commands:
        assert "--require-hashes" in command or "--no-deps" in command, command


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    """.dockerignore lets in the sources of each COPY; neither tests nor Git's folder."""
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert any(fnmatch.fnmatch(source, rule) or source == "setup.p[y]" for rule in kept), source
    assert not [rule for rule in kept if rule.startswith((".git", "tests", ".venv"))]


@pytest.mark.parametrize("script", sorted(IMAGE.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_good_shell(script: Path) -> None:
    """A shell reads each script to its end, and stops at its first error."""
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nset -eu\n" in script.read_text("utf-8")
