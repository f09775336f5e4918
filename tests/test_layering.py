"""The shape of the house as a test: who may import whom, what belongs where, how large it gets.

Reads the source, runs none of it. Each rule is a function from one parsed module to its
violations, so that those planted at the end can prove that the rules see what they are for.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

TIERS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"kubernetes"}),
    frozenset({"doctor"}),
    frozenset({"mount", "client", "transfer"}),
    frozenset({"hints"}),
    frozenset({"engine", "tree"}),
    frozenset({"cache", "store"}),
    frozenset({"config"}),
    frozenset({"policy", "telemetry"}),
    frozenset({"objects", "errors", "values"}),
)
"""The units of fusefs from top to bottom. A unit imports itself and what stands below it."""

LOADERHINT_LEAVES = frozenset({"loaderhint.protocol", "loaderhint.header"})
"""All that fusefs may know of loaderhint."""


def adapter(*modules: str) -> frozenset[str]:
    """The files of one kind of store."""
    return frozenset(f"fusefs/store/{module}.py" for module in modules)


SDKS: dict[str, frozenset[str]] = {
    "boto3": adapter("s3", "s3_client", "s3_errors", "s3_write"),
    "botocore": adapter("s3", "s3_client", "s3_errors", "s3_write"),
    "s3transfer": frozenset(),
    "google": adapter("gcs", "gcs_client", "gcs_errors", "gcs_write")
    | {"fusefs/kubernetes/wire.py"},  # Protocol Buffers are in the same namespace
    "grpc": frozenset(
        f"fusefs/kubernetes/{name}.py"
        for name in ("answers", "controller", "node", "plugin", "registration", "wire")
    )
    | {"fusefs/cli/kubernetes.py"},
    "azure": adapter("azure", "azure_client", "azure_errors", "azure_write"),
    "redis": adapter("redis_link", "redis_errors") | {"fusefs/cache/redis.py"},
}
"""Which module may import which SDK."""

TORCH_AND_ABOVE = frozenset(
    {
        f"loaderhint/{name}.py"
        for name in ("torch", "tensors", "cuda", "streamer", "distributed", "vllm", "sglang")
    }
)
"""The modules of loaderhint that may import more than the standard library."""

WITHOUT_TRIO = frozenset({"policy", "store", "telemetry", "objects", "errors", "config", "cli"})
"""Units that run where there is no event loop, or that must not care."""

IMPURE = frozenset(
    {
        "asyncio",
        "concurrent",
        "ctypes",
        "datetime",
        "fcntl",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "queue",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
    }
)
"""What a pure decision has no use for: clocks, files, sockets, threads, and talk."""

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
CONSTRUCTOR_PARAMETERS_MAX = 7
COLUMNS_MAX = 100

VAGUE = re.compile(
    r"(^|_)(utils?|helpers?|managers?|impl|misc|common)(_|$)|handle_data", re.IGNORECASE
)
"""Names that say nothing of what a thing is for."""


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed source file; `path` is relative to the repository, with slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def unit(self) -> str:
        """The unit of fusefs it belongs to ("" for `fusefs/__init__.py` and outside fusefs)."""
        parts = PurePosixPath(self.path).with_suffix("").parts
        return parts[1] if parts[0] == "fusefs" and parts[1] != "__init__" else ""

    @property
    def package(self) -> str:
        """The top-level package."""
        return PurePosixPath(self.path).parts[0]


Rule = Callable[[Module], Iterator[str]]


def parse(path: str, text: str) -> Module:
    """Parse one module."""
    return Module(path, text, ast.parse(text))


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported, wherever it stands; ".x" if relative."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def arrows_point_down(module: Module) -> Iterator[str]:
    """A unit of fusefs imports itself and lower tiers; of loaderhint only the two leaves."""
    if module.package != "fusefs":
        return
    height = {unit: number for number, tier in enumerate(TIERS) for unit in tier}
    if module.unit and module.unit not in height:
        yield f"{module.path}: the unit {module.unit} stands on no tier of TIERS"
        return
    for line, name in imports(module):
        parts = name.split(".")
        if parts[0] == "loaderhint" and ".".join(parts[:2]) not in LOADERHINT_LEAVES:
            yield f"{module.path}:{line}: imports {name}, of loaderhint only the leaves are free"
        if parts[0] != "fusefs" or len(parts) == 1 or parts[1] in (module.unit, "__version__"):
            continue
        if height.get(parts[1], -1) <= height.get(module.unit, len(TIERS)):
            yield f"{module.path}:{line}: imports {name}, which is not below {module.unit}"


def loaderhint_stands_alone(module: Module) -> Iterator[str]:
    """Runs inside applications: standard library only but for its torch side, never fusefs."""
    if module.package != "loaderhint":
        return
    free = module.path in TORCH_AND_ABOVE
    for line, name in imports(module):
        top = name.split(".")[0]
        if top == "fusefs":
            yield f"{module.path}:{line}: loaderhint imports nothing of fusefs"
        elif top != "loaderhint" and not free and top not in sys.stdlib_module_names:
            yield f"{module.path}:{line}: imports {name}, which is not in the standard library"


def libraries_in_their_place(module: Module) -> Iterator[str]:
    """pyfuse3 in mount/, each SDK in its adapter, torch outside fusefs, trio not at the bottom."""
    if module.package != "fusefs":
        return
    for line, name in imports(module):
        top = name.split(".")[0]
        if top == "pyfuse3" and module.unit != "mount":
            yield f"{module.path}:{line}: pyfuse3 is for fusefs/mount/ only"
        if top in SDKS and module.path not in SDKS[top]:
            yield f"{module.path}:{line}: {top} is for its adapter only"
        if top in ("torch", "safetensors", "transformers", "numpy"):
            yield f"{module.path}:{line}: {top} has no place in fusefs"
        if top == "trio" and module.unit in WITHOUT_TRIO:
            yield f"{module.path}:{line}: no trio in {module.unit}"


def policy_is_pure(module: Module) -> Iterator[str]:
    """A decision reads no clock and no file: what it needs is handed in."""
    if module.unit != "policy":
        return
    for line, name in imports(module):
        if name.split(".")[0] in IMPURE:
            yield f"{module.path}:{line}: {name} in policy"
    for line in _calls(module, "open", "input"):
        yield f"{module.path}:{line}: I/O in policy"


def prints_in_cli_only(module: Module) -> Iterator[str]:
    """print() belongs to the command line."""
    if module.package not in ("fusefs", "loaderhint") or module.unit == "cli":
        return
    if module.path == "loaderhint/__main__.py":
        return
    for line in _calls(module, "print"):
        yield f"{module.path}:{line}: print() outside the command line"


def imports_are_absolute(module: Module) -> Iterator[str]:
    """A reader sees from where a thing comes."""
    for line, name in imports(module):
        if name.startswith("."):
            yield f"{module.path}:{line}: relative import of {name}"


def modules_are_introduced(module: Module) -> Iterator[str]:
    """Every module says what it is for; empty ones have nothing to say."""
    if module.text.strip() and not ast.get_docstring(module.tree):
        yield f"{module.path}: no module docstring"


def sizes_stay_small(module: Module) -> Iterator[str]:
    """Past these budgets there is a second thing in there."""
    lines = module.text.splitlines()
    if len(lines) > MODULE_LINES_MAX:
        yield f"{module.path}: {len(lines)} lines, more than {MODULE_LINES_MAX}"
    for number, line in enumerate(lines, 1):
        # As ruff has it: one word, a URL say, cannot be broken.
        if len(line) > COLUMNS_MAX and len(line.split()) > 1:
            yield f"{module.path}:{number}: {len(line)} columns, more than {COLUMNS_MAX}"
    for node in ast.walk(module.tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        size = (node.end_lineno or node.lineno) - node.lineno + 1
        if size > FUNCTION_LINES_MAX:
            yield f"{module.path}:{node.lineno}: {node.name} has {size} lines"
        arguments = node.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - 1
        if node.name == "__init__" and count > CONSTRUCTOR_PARAMETERS_MAX:
            yield f"{module.path}:{node.lineno}: a constructor with {count} parameters"


def names_say_something(module: Module) -> Iterator[str]:
    """No module, class or function is called by what everything is."""
    for part in PurePosixPath(module.path).with_suffix("").parts:
        if VAGUE.search(part):
            yield f"{module.path}: the name {part} does not say what it is for"
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.name)
            if VAGUE.search(words):
                yield f"{module.path}:{node.lineno}: the name {node.name} does not say what for"


RULES: tuple[Rule, ...] = (
    arrows_point_down,
    loaderhint_stands_alone,
    libraries_in_their_place,
    policy_is_pure,
    prints_in_cli_only,
    imports_are_absolute,
    modules_are_introduced,
    sizes_stay_small,
    names_say_something,
)


def _calls(module: Module, *names: str) -> Iterator[int]:
    """Yield the line of each call of a builtin of these names."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in names:
                yield node.lineno


def _sources() -> list[Module]:
    folders = [ROOT / name for name in ("fusefs", "loaderhint", "tests")]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [parse(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    """Every module of fusefs, loaderhint and tests keeps every rule of the house."""
    violations = [violation for module in _sources() for violation in rule(module)]
    assert not violations, "\n" + "\n".join(violations)


def test_the_sources_are_found() -> None:
    """The rules are applied to the packages themselves, not to an empty list."""
    found = {module.path for module in _sources()}
    assert {"fusefs/objects.py", "loaderhint/__init__.py", "tests/test_layering.py"} <= found


DOC = '"""Says what it is for."""\n'

PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (arrows_point_down, "fusefs/policy/x.py", "from fusefs.engine.reader import Reader"),
    (arrows_point_down, "fusefs/store/x.py", "import fusefs.mount.daemon"),
    (arrows_point_down, "fusefs/engine/x.py", "from fusefs.tree.tree import Tree"),
    (arrows_point_down, "fusefs/engine/x.py", "def f():\n    from fusefs import cli"),
    (arrows_point_down, "fusefs/mount/x.py", "from loaderhint.torch import load"),
    (arrows_point_down, "fusefs/novelty.py", "x = 1"),
    (arrows_point_down, "fusefs/objects.py", "from fusefs.errors import FusefsError"),
    (loaderhint_stands_alone, "loaderhint/client.py", "import fusefs.errors"),
    (loaderhint_stands_alone, "loaderhint/header.py", "import numpy as np"),
    (libraries_in_their_place, "fusefs/engine/x.py", "import pyfuse3"),
    (libraries_in_their_place, "fusefs/store/source.py", "from botocore.config import Config"),
    (libraries_in_their_place, "fusefs/store/x.py", "import trio"),
    (libraries_in_their_place, "fusefs/engine/x.py", "import torch"),
    (policy_is_pure, "fusefs/policy/x.py", "from time import monotonic"),
    (policy_is_pure, "fusefs/policy/x.py", "def f():\n    return open('x')"),
    (prints_in_cli_only, "fusefs/client.py", "def f():\n    print(1)"),
    (imports_are_absolute, "fusefs/engine/x.py", "from . import reader"),
    (modules_are_introduced, "fusefs/engine/x.py", "x = 1"),
    (sizes_stay_small, "fusefs/engine/x.py", "x = 1\n" * 401),
    (sizes_stay_small, "fusefs/engine/x.py", f"x = '{'y ' * 50}'"),
    (sizes_stay_small, "fusefs/engine/x.py", "async def f():\n" + "    x = 1\n" * 70),
    (
        sizes_stay_small,
        "fusefs/engine/x.py",
        "class A:\n    def __init__(self, a, b, c, d, e, f, g, *, h):\n        self.a = a",
    ),
    (names_say_something, "fusefs/engine/fetch_utils.py", "x = 1"),
    (names_say_something, "fusefs/engine/x.py", "class SlotManager:\n    pass"),
    (names_say_something, "fusefs/engine/x.py", "def read_impl():\n    pass"),
)


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_caught(rule: Rule, path: str, text: str) -> None:
    """Each rule reports the violation it was written for."""
    assert list(rule(parse(path, text))), f"{rule.__name__} sees nothing wrong in: {text[:80]}"


ALLOWED: tuple[tuple[str, str], ...] = (
    ("fusefs/cli.py", "from fusefs.config import Config\n\n\ndef f() -> None:\n    print(1)"),
    ("fusefs/mount/x.py", "import pyfuse3\nimport trio\n\nfrom fusefs.engine.reader import Reader"),
    (
        "fusefs/engine/x.py",
        "from loaderhint.header import parse\n\nfrom fusefs.engine import arena",
    ),
    (
        "fusefs/store/s3.py",
        "import boto3\n\nfrom fusefs import __version__\nfrom fusefs.errors import E",
    ),
    ("fusefs/policy/x.py", "import math\n\nfrom fusefs.objects import Extent"),
    ("loaderhint/torch.py", "import torch\n\nfrom loaderhint import header"),
)


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    """No rule reports what the layers permit."""
    module = parse(path, DOC + text)
    assert [violation for rule in RULES for violation in rule(module)] == []
