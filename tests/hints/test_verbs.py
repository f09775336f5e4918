"""The verbs, asked as a shell does: by extended attributes of a real mount."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.hints.conftest import MIB


def ask(path: Path, verb: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(os.getxattr(path, f"user.fusefs.{verb}"))
    assert answer["v"] == 1
    return answer


def wait_ready(path: Path) -> dict[str, Any]:
    """Ask for progress until all of it is there."""
    deadline = time.monotonic() + 20
    while True:
        answer = ask(path, "progress")
        if answer["ready_bytes"] == answer["total_bytes"]:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.01)


def test_a_file_is_fetched_before_it_is_read(mounted: Mounted, weights: Path) -> None:
    """After `prefetch` all bytes are there, and reading them asks the store for nothing."""
    path = mounted.path / "a.safetensors"
    answer = ask(path, "prefetch")
    size = path.stat().st_size
    assert answer["planned"]
    assert answer["total_bytes"] == size
    wait_ready(path)
    before = mounted.counters()
    assert before["bytes_fetched"] == size
    assert path.read_bytes() == (weights / "a.safetensors").read_bytes()
    assert mounted.counters()["requests_read"] == before["requests_read"]
    assert ask(path, "prefetch")["ready_bytes"] == size  # said twice, done once
    assert mounted.counters()["bytes_fetched"] == size


def test_an_extent_is_all_that_is_fetched(mounted: Mounted, weights: Path) -> None:
    """Touching the data then follows the plan: the rest of the shard stays where it is."""
    path = mounted.path / "a.safetensors"
    start, stop = 10 * MIB, 12 * MIB - 1
    assert ask(path, f"prefetch:{start}-{stop}")["total_bytes"] == stop - start
    wait_ready(path)
    with path.open("rb", buffering=0) as file:
        assert (
            os.pread(file.fileno(), stop - start, start)
            == ((weights / "a.safetensors").read_bytes()[start:stop])
        )
        # The kernel's readahead adds up to a MiB behind what was asked for.
        assert mounted.counters()["bytes_fetched"] <= 4 * MIB
        assert ask(path, "cancel")["cancelled"]
        assert not ask(path, "cancel")["cancelled"]


def test_a_directory_means_its_shards(mounted: Mounted) -> None:
    """Prefetching a directory fetches the shards directly in it, and nothing else."""
    answer = ask(mounted.path, "prefetch")
    assert answer["total_bytes"] == 33 * MIB + 77
    done = wait_ready(mounted.path)
    assert done["failed"] == []
    assert mounted.counters()["bytes_fetched"] == 33 * MIB + 77
    assert ask(mounted.path / "sub", "prefetch")["total_bytes"] == 3 * MIB + 5


def test_progress_without_a_plan_tells_what_is_here(mounted: Mounted) -> None:
    """A file that was read is ready; one that was not is not."""
    path = mounted.path / "b.safetensors"
    assert ask(path, "progress") == {
        "v": 1, "planned": False, "ready_bytes": 0, "total_bytes": 9 * MIB, "failed": [],
    }  # fmt: skip
    path.read_bytes()
    assert ask(path, "progress")["ready_bytes"] == 9 * MIB


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("prefetch:0-99999999999", errno.EINVAL),
        ("prefetch:5-4", errno.EINVAL),
        ("prefetch:-5", errno.ENODATA),
        ("prefetch:", errno.ENODATA),
        ("prefetch:1-2-3", errno.ENODATA),
        ("prefetch:" + "9" * 100 + "-1", errno.ENODATA),
        ("unheard", errno.ENODATA),
    ],
)
def test_what_is_no_verb_is_no_data(mounted: Mounted, verb: str, number: int) -> None:
    """Nonsense has an errno that is never ENOSYS, and the next verb is answered."""
    path = mounted.path / "a.safetensors"
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        os.getxattr(path, f"user.fusefs.{verb}")
    assert caught.value.errno == number
    assert ask(path, "progress")["total_bytes"] == path.stat().st_size
    assert os.listxattr(path) == []


def test_who_may_not_read_may_not_hint(weights: Path) -> None:
    """The kernel refuses a verb of a user that the file's mode keeps out."""
    options = ("--set", "mount.allow_other=true", "--set", "mount.umask=077")
    with open_mount(f"file://{weights}", *options) as mounted:
        script = f"import os; os.getxattr({str(mounted.path)!r}, 'user.fusefs.prefetch')"
        done = subprocess.run(
            ["setpriv", "--reuid", "1000", "--clear-groups", "/usr/bin/python3", "-c", script],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert "PermissionError" in done.stderr
        assert mounted.counters()["bytes_fetched"] == 0
