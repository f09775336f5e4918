"""What a mount refuses, and how: errno for errno like a read-only bind mount of the same tree."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.posix.refusals import CALLS, LINKS, TARGETS, make_tree

TIMEOUT_S = 90.0
STRANGER = "9999"

BIND = (
    'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && exec "$3" -m tests.posix.refusals'
    ' "$2" "$4"'
)
"""In a mount namespace of its own, so that nothing of it stays. A slave: what is unmounted outside
meanwhile must not live on in there."""

HARMLESS = {"open to read", "open a directory", "open as a place", "stat", "list", "chdir",
            "access to read", "readlink", "fsync"}  # fmt: skip
"""The calls of the table that change nothing: they are there for their errnos."""

MAY_WORK = {
    ("open to create and read", "a file"),
    ("access to write", "the hints' socket"),
    ("bind", "nothing"),
}
"""What looks like a change and is none: the file is there, and nothing is written to it; who may
connect to a socket may "write" to it; and a socket without a path is in no file system."""


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A tree where other users may come to; pytest's own folder is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="fusefs-refusals-"))
    folder.chmod(0o755)
    try:
        make_tree(folder / "tree")
        (folder / "bind").mkdir()
        yield folder / "tree"
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def mounted(tree: Path) -> Iterator[Mounted]:
    """That tree on a mount that others may see."""
    with open_mount(f"file://{tree}", "-o", "allow_other") as mount:
        yield mount


def answers(command: list[str]) -> dict[str, str]:
    """What a run of the table found."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def of_the_mount(mounted: Mounted, uid: str) -> dict[str, str]:
    """The table on the mount."""
    return answers([sys.executable, "-m", "tests.posix.refusals", str(mounted.path), uid])


def of_a_bind_mount(tree: Path, uid: str) -> dict[str, str]:
    """The table on a read-only bind mount of the tree."""
    places = [str(tree), str(tree.parent / "bind"), sys.executable, uid]
    return answers(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", BIND, "sh", *places]
    )


@pytest.mark.parametrize("uid", ["0", STRANGER], ids=["root", "a stranger"])
def test_every_refusal_is_that_of_a_read_only_mount(mounted: Mounted, tree: Path, uid: str) -> None:
    """Each call on each kind of name fails by the errno that Linux itself gives."""
    ours, theirs = of_the_mount(mounted, uid), of_a_bind_mount(tree, uid)
    names = [f"{call} on {target}" for call in CALLS for target in TARGETS]
    assert len(names) > 1000
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_nothing_that_changes_anything_works(mounted: Mounted, tree: Path) -> None:
    """Root itself changes nothing; and afterwards the tree is what it was."""
    before = sorted(str(path) for path in tree.rglob("*"))
    ours = of_the_mount(mounted, "0")
    worked = {
        (call, target)
        for call in CALLS.keys() - HARMLESS
        for target in TARGETS
        if ours[f"{call} on {target}"] == "ok"
    }
    assert worked <= MAY_WORK, worked - MAY_WORK
    assert sorted(str(path) for path in tree.rglob("*")) == before
    assert (tree / "file").read_bytes() == b"four"


def test_attributes_that_are_not_there_are_enodata(mounted: Mounted) -> None:
    """Whatever the namespace, and whether there is one."""
    for name in (
        "user.absent",
        "user.fusefs.absent",
        "trusted.absent",
        "absent.absent",
        "security.x",
    ):
        with pytest.raises(OSError, match="No data") as caught:
            os.getxattr(mounted.path / "file", name)
        assert caught.value.errno == errno.ENODATA, name
    assert os.listxattr(mounted.path / "file") == []


def test_links_are_files_or_nothing(mounted: Mounted) -> None:
    """A link to a file answers every call as a file does, a loop as a name that is not there."""
    ours = of_the_mount(mounted, "0")
    same = {"a link to a file": "a file", "a loop of links": "an absent name"}
    assert same.keys() == LINKS.keys()
    for link, other in same.items():
        for call in CALLS:
            assert ours[f"{call} on {link}"] == ours[f"{call} on {other}"], (call, link)
