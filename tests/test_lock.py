"""The image's lock is what pyproject.toml asks for: every package, pinned, with hashes. Offline."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "helm/image"
STALE = "run `make lock`"

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")

_PARENT = re.compile(r"#\s+(?:via )?(?!via\b|-)(\S+)(?: \(pyproject\.toml\))?$", re.MULTILINE)
"""`# via boto3`, or on lines of their own below `# via`; `-c …` is a file of constraints."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One package of a lock. `parents` are those that the lock says need it."""

    requirement: Requirement
    hashes: int
    parents: frozenset[str]


def _locked(file: Path) -> dict[str, Entry]:
    """The packages of a lock, by name."""
    found = {}
    for text in re.split(r"\n(?=\S)", file.read_text("utf-8").replace("\\\n", "")):
        line, _, comments = text.partition("#")
        if line.strip():
            requirement = Requirement(_HASH.sub("", line).strip())
            parents = _PARENT.findall(f"#{comments}")
            name = canonicalize_name(requirement.name)
            found[str(name)] = Entry(requirement, len(_HASH.findall(line)), frozenset(parents))
    return found


def _pin(requirement: Requirement) -> str:
    """The one version that `name==version` admits."""
    (only,) = requirement.specifier
    assert only.operator == "==", requirement
    return only.version


def _asked(extra: str) -> Iterator[Requirement]:
    """What pyproject.toml wants installed with one extra, fusefs's own extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    waiting, seen = [extra], set[str]()
    yield from map(Requirement, project["dependencies"])
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for requirement in map(Requirement, project["optional-dependencies"][name]):
            if requirement.name == project["name"]:
                waiting.extend(requirement.extras)
            else:
                yield requirement


def _needs(name: str, locked: dict[str, Entry]) -> Iterator[Requirement]:
    """What a package needs: by its metadata, or by the lock where another version lies here."""
    if name in locked and version(name) != _pin(locked[name].requirement):
        for child, entry in locked.items():
            if name in entry.parents:
                yield Requirement(child)
        return
    yield from map(Requirement, requires(name) or ())


def _needed(roots: list[Requirement], locked: dict[str, Entry]) -> set[str]:
    """All that the roots need here, through all of their packages."""
    waiting = [(str(canonicalize_name(root.name)), frozenset(root.extras)) for root in roots]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for needed in _needs(name, locked):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""}):
                waiting.append((str(canonicalize_name(needed.name)), frozenset(needed.extras)))
    return {name for name, _ in seen}


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_every_package_is_pinned_with_hashes(name: str) -> None:
    """Each line of a lock admits one version, and only files whose hash it names."""
    locked = _locked(IMAGE / name)
    assert locked
    bare = [n for n, entry in locked.items() if not entry.hashes or not _pin(entry.requirement)]
    assert bare == []


def test_the_lock_has_what_the_image_asks_for() -> None:
    """Whatever the extra `image` needs, through all of its packages, is in the lock."""
    roots = list(_asked("image"))
    locked = _locked(IMAGE / "requirements.lock")
    wrong = [
        str(root)
        for root in roots
        if (name := canonicalize_name(root.name)) not in locked
        or not root.specifier.contains(_pin(locked[name].requirement), prereleases=True)
    ]
    assert wrong == [], STALE
    assert _needed(roots, locked) - set(locked) == set(), STALE


def test_the_lock_has_nothing_else() -> None:
    """A package that nothing asks for any more is not in the image."""
    locked = _locked(IMAGE / "requirements.lock")
    markers = {name: entry.requirement.marker for name, entry in locked.items()}
    here = {name for name, marker in markers.items() if marker is None or marker.evaluate()}
    assert here - _needed(list(_asked("image")), locked) == set(), STALE


def test_the_build_lock_has_what_builds() -> None:
    """What build.in asks for, and fusefs's own build, is in the lock of the builder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = (IMAGE / "build.in").read_text("utf-8").splitlines()
    wanted = [*project["build-system"]["requires"], *(line for line in listed if line[:1] != "#")]
    locked = _locked(IMAGE / "build.lock")
    for requirement in map(Requirement, wanted):
        entry = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(_pin(entry.requirement)), STALE


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_the_image_holds_what_was_tested(name: str) -> None:
    """A version that tests/constraints.txt names is the lock's as well."""
    text = (ROOT / "tests/constraints.txt").read_text("utf-8")
    tested = [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]
    locked = _locked(IMAGE / name)
    differ = {
        requirement.name: _pin(requirement)
        for requirement in tested
        if (entry := locked.get(canonicalize_name(requirement.name)))
        and _pin(entry.requirement) != _pin(requirement)
    }
    assert differ == {}, STALE


def test_the_lock_says_itself_who_needs_what() -> None:
    """Where other versions lie here than the lock's, its own account of who needs whom is used."""
    locked = _locked(IMAGE / "requirements.lock")
    orphans = {n: e.parents for n, e in locked.items() if not e.parents & {*locked, "fusefs"}}
    assert orphans == {}, STALE


def test_a_package_that_is_not_installed_would_be_noticed() -> None:
    """The check of completeness reads metadata, and fails where there is none."""
    with pytest.raises(PackageNotFoundError):
        _needed([Requirement("no-such-package-of-ours")], {})
