"""Every wait in fusefs has a deadline, or stands in the table that says what ends it.

Reads the source, runs none of it. A wait is a call that can block on somebody else: a receive, a
child's end, an event. It is bounded if its own arguments or a `trio` scope around it say so; all
others are rows of docs/architecture.md, "What waits, and for how long", no more and no fewer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCOPES = frozenset({"move_on_after", "move_on_at", "fail_after", "fail_at"})

RECEIVES = frozenset(
    {
        "recv", "recvmsg", "recv_into", "recv_fds", "accept", "wait_readable", "wait_writable",
        "sleep_forever", "sendall", "writev", "waitpid", "readline", "flock",
        "wait_settled", "open_signal_receiver",
    }
)  # fmt: skip
"""Calls that block whatever their arguments are; `flock` unless LOCK_NB is among them."""

TIMED = {"wait": 0, "join": 0, "communicate": 1, "result": 0}
"""Methods that block without a timeout, and the place of that among their arguments."""

CHILDREN = frozenset({"run", "call", "check_call", "check_output"})
"""Of `subprocess`: bounded by `timeout=`."""

LOCKS = re.compile(r"(_lock|_waiting|limiter)$")
"""What an `async with` may have to wait for."""

_ROW = re.compile(r"^\| `(fusefs/[\w/]+\.py):([\w.]+)` \|", re.MULTILINE)


class Waits(ast.NodeVisitor):
    """Finds unbounded waits.

    The mutable state of Waits is where it is: classes and functions, and scopes with a deadline.
    """

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._names: list[str] = []
        self._bounds = 0

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node.name, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node.name, node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._enter(node.name, node)

    def _enter(self, name: str, node: ast.AST) -> None:
        bounds, self._bounds = self._bounds, 0  # a scope ends at the function in it
        self._names.append(name)
        self.generic_visit(node)
        self._names.pop()
        self._bounds = bounds

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item)
        bounded = any(_called(item.context_expr) in SCOPES for item in node.items)
        self._bounds += bounded
        for statement in node.body:
            self.visit(statement)
        self._bounds -= bounded

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        for item in node.items:
            if LOCKS.search(ast.unparse(item.context_expr)):
                self._note(node.lineno)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._note(node.lineno)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if waits(node):
            self._note(node.lineno)
        self.generic_visit(node)

    def _note(self, line: int) -> None:
        if not self._bounds:
            self.found.setdefault(".".join(self._names), line)


def waits(call: ast.Call) -> bool:
    """Whether a call may block, and its arguments set no bound."""
    name, of = _called(call), _owner(call)
    keywords = {keyword.arg for keyword in call.keywords}
    if name == "flock":
        return "LOCK_NB" not in ast.unparse(call)
    if name in RECEIVES:
        return True
    if name in TIMED:
        if of in ("'", "os.path", "path") or of.startswith(("'", '"', "f'")):
            return False  # joins text
        return len(call.args) <= TIMED[name] and not keywords & {"timeout", "timeout_s"}
    if name in CHILDREN and of == "subprocess":
        return "timeout" not in keywords
    return name == "select" and of == "select" and len(call.args) < 4


def _called(node: ast.expr) -> str:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
    return ""


def _owner(call: ast.Call) -> str:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def unbounded(text: str) -> dict[str, int]:
    """The functions of a module that wait without a bound, with the line of the first wait."""
    visitor = Waits()
    visitor.visit(ast.parse(text))
    return visitor.found


def _all_unbounded() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "fusefs").rglob("*.py")):
        for function in unbounded(path.read_text("utf-8")):
            yield path.relative_to(ROOT).as_posix(), function


def test_every_wait_has_a_deadline_or_a_row() -> None:
    """A new wait gets a bound, or a row that says what ends it; a row without a wait goes."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows, found = set(_ROW.findall(text)), set(_all_unbounded())
    missing = [f"| `{path}:{name}` | waits for … | ends when … |" for path, name in found - rows]
    assert not missing, "give these a deadline, or a row in docs/architecture.md:\n" + "\n".join(
        sorted(missing)
    )
    assert not rows - found, f"rows of docs/architecture.md without a wait: {rows - found}"


PLANTED = (
    "def f(s):\n    s.recv(1)",
    "async def f(e):\n    await e.wait()",
    "def f(p):\n    p.communicate()",
    "import subprocess\ndef f():\n    subprocess.run(['true'])",
    "import select\ndef f(r):\n    select.select([r], [], [])",
    "def f(thread):\n    thread.join()",
    "async def f(channel):\n    async for x in channel:\n        pass",
    "class A:\n    async def f(self):\n        async with self._lock:\n            pass",
    "import fcntl\ndef f(fd):\n    fcntl.flock(fd, fcntl.LOCK_EX)",
    "async def f(e):\n    with trio.move_on_after(1):\n        pass\n    await e.wait()",
    "with trio.move_on_after(1):\n    async def f(e):\n        await e.wait()",
)

BOUNDED = (
    "async def f(e):\n    with trio.move_on_after(1):\n        await e.wait()",
    "def f(p):\n    p.wait(3)\n    p.communicate(timeout=3)",
    "import subprocess\ndef f():\n    subprocess.run(['true'], timeout=1)",
    "import select\ndef f(r):\n    select.select([r], [], [], 1.0)",
    "def f(names):\n    return ', '.join(names)",
    "import fcntl\ndef f(fd):\n    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
)


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_wait_is_seen(text: str) -> None:
    """The rule sees each kind of wait it was written for."""
    assert list(unbounded(text)) in (["f"], ["A.f"])


@pytest.mark.parametrize("text", BOUNDED)
def test_a_bounded_wait_needs_no_row(text: str) -> None:
    """A deadline in the call or around it is enough."""
    assert unbounded(text) == {}
