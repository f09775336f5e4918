"""What the documents claim about the tree is true: links lead somewhere, named files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

README_LINES_MAX = 150
"""A newcomer reads one page."""

_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
_NAMED_FILE = re.compile(r"`((?:fusefs|loaderhint|tests|docs|helm|\.ci)/[\w./-]*\.\w+)`")
_MAKE_TARGET = re.compile(r"\bmake ([a-z]+)\b")


def _documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", _documents(), ids=_name)
def test_links_and_named_files_exist(document: Path) -> None:
    """Every relative link of a document, and every file it names, is there."""
    text = document.read_text("utf-8")
    links = [link for link in _LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [name for name in _NAMED_FILE.findall(text) if not (ROOT / name).exists()]
    assert missing == []


def test_the_readme_is_one_page() -> None:
    """The README stays short enough to be read."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES_MAX


def test_make_targets_named_in_documents_exist() -> None:
    """Whatever `make …` a document tells to run is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {
        target
        for document in _documents()
        for code in re.findall(r"```.*?```|`[^`\n]+`", document.read_text("utf-8"), re.DOTALL)
        for target in _MAKE_TARGET.findall(code)
    }
    assert {"demo", "test"} <= named <= targets
