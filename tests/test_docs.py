"""What the documents claim about the tree is true: links lead somewhere, named files exist."""

from __future__ import annotations

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

README_LINES_MAX = 150
"""A newcomer reads one page."""

_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
_NAMED_FILE = re.compile(r"`((?:fusefs|loaderhint|tests|docs|helm|\.ci)/[\w./-]*\.\w+)`")
_BRACKET = re.compile(r"\[(`(?:[^\[\]`]*`[^\[\]`]*`)*[^\[\]`]*`)\](?!\()")
_EVIDENCE = re.compile(r"`([\w/-]+\.py)(?:::(\w+))?`")
"""In the brackets of docs/semantics.md: a test, or a module all of which is about the sentence."""
_POINT = re.compile(r"^(?:- |\d+\. )", re.MULTILINE)
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


@cache
def _tests_of(file: Path) -> dict[str, str]:
    """The tests of a module and what they promise; under "" what the module says of itself."""
    tree = ast.parse(file.read_text("utf-8"))
    functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    promised = {f.name: ast.get_docstring(f) or "" for f in functions if f.name[:5] == "test_"}
    return {**promised, "": ast.get_docstring(tree) or ""}


def _evidence(text: str) -> list[tuple[str, str]]:
    """The tests that brackets name: module and function, "" for the whole module."""
    return [pair for bracket in _BRACKET.findall(text) for pair in _EVIDENCE.findall(bracket)]


def _missing(text: str) -> list[str]:
    """What brackets name that is not there, or that does not say what it promises."""
    return [
        f"{module}::{test}"
        for module, test in _evidence(text)
        if not (file := ROOT / "tests" / module).exists() or not _tests_of(file).get(test)
    ]


@pytest.mark.parametrize("name", ["semantics.md", "security.md"])
def test_named_tests_exist(name: str) -> None:
    """Every test that a document calls as evidence is there, and says what it promises."""
    text = (ROOT / "docs" / name).read_text("utf-8")
    assert _evidence(text)
    assert _missing(text) == []


def test_each_promise_names_its_test() -> None:
    """No point of docs/semantics.md stands there without a test."""
    text = (ROOT / "docs/semantics.md").read_text("utf-8")
    ends = [*(match.start() for match in _POINT.finditer(text)), len(text)]
    points = [text[at:end] for at, end in itertools.pairwise(ends)]
    assert len(points) > 40
    assert [point.splitlines()[0] for point in points if not _evidence(point)] == []


def test_a_promise_without_its_test_would_be_noticed() -> None:
    """The checks see a point without brackets, a test that is not there, and several in a row."""
    there = "test_docs.py::test_named_tests_exist"
    assert _evidence("- [hints](hints.md) are `posix.py` [`5`]") == []
    assert _missing(f"[`{there}`, `test_docs.py`; more: `{there}`]") == []
    assert _missing("[`test_docs.py::test_of_nothing`, `nowhere.py`]") == [
        "test_docs.py::test_of_nothing",
        "nowhere.py::",
    ]
