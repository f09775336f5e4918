"""Slots over a real socket: bytes out of the arena, who may have them, and what holds them."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.hints.client import Client, connect, inode
from tests.hints.conftest import MIB
from tests.hints.test_hostile import reading


def take_all(client: Client, plan: str, want: dict[int, bytes]) -> int:
    """Map the arena, compare every slot, release it; until the plan is done. Returns the bytes."""
    answer = client.ask("map", plan=plan)
    with mmap.mmap(client.fds.pop(), answer["size_bytes"], prot=mmap.PROT_READ) as arena:
        taken = 0
        while True:
            event = client.event("slot", "failed", "done")
            assert event["ev"] != "failed", event
            if event["ev"] == "done":
                return taken
            start, size, at = event["start"], event["size"], event["at"]
            assert arena[at : at + size] == want[event["inode"]][start : start + size]
            taken += size
            client.send("release", plan=plan, slots=[at])


@pytest.fixture
def files(mounted: Mounted, weights: Path) -> dict[int, bytes]:
    """What the shards hold, by inode."""
    names = ("a.safetensors", "b.safetensors")
    return {inode(mounted.path / name): (weights / name).read_bytes() for name in names}


def test_a_model_comes_out_of_the_arena(mounted: Mounted, files: dict[int, bytes]) -> None:
    """Every byte, once, through a window far smaller than the model, and without a READ."""
    before = mounted.counters()
    with connect(mounted.path) as client:
        assert "slots" in client.ask("hello", protocol=[1])["features"]
        wish = [{"inode": number} for number in files]
        client.ask("plan", plan="p", mode="slots", files=wish, window_bytes=4 * MIB)
        size = sum(map(len, files.values()))
        assert take_all(client, "p", files) == size
        assert client.ask("progress", plan="p")["ready_bytes"] == size
    after = mounted.counters()
    assert after["bytes_fetched"] == size
    assert after["reads"] == before["reads"]


def test_four_ranks_cost_one_download(mounted: Mounted, files: dict[int, bytes]) -> None:
    """Each rank of a group gets every byte; each byte is fetched once."""
    taken: list[int] = []

    def rank(number: int) -> None:
        with connect(mounted.path) as client:
            group = {"id": "job", "rank": number, "size": 4}
            wish = [{"inode": file} for file in files]
            client.ask("plan", plan="p", mode="slots", files=wish, group=group)
            taken.append(take_all(client, "p", files))

    ranks = [threading.Thread(target=rank, args=(n,), daemon=True) for n in range(4)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    size = sum(map(len, files.values()))
    assert taken == [size] * 4
    assert mounted.counters()["bytes_fetched"] <= 1.05 * size


def test_slots_that_are_never_released_hold_nobody_up(
    weights: Path,
) -> None:
    """A peer fills its window and stops; readers get their bytes; its end frees the slots."""
    options = ("--memory", "16M", "--set", "kernel.push=false")
    with open_mount(f"file://{weights}", *options) as mounted:
        number = inode(mounted.path / "a.safetensors")
        want = {number: (weights / "a.safetensors").read_bytes()}
        with connect(mounted.path) as greedy:
            wish = [{"inode": number}]
            greedy.ask("plan", plan="p", mode="slots", files=wish, window_bytes=1 << 40)
            greedy.ask("map", plan="p")
            held = 0
            while held < 8 * MIB:
                held += greedy.event("slot")["size"]
            with reading(mounted, weights):
                pass
            assert greedy.ask("progress", plan="p")["ready_bytes"] == held == 8 * MIB
        with connect(mounted.path) as client:
            client.ask("plan", plan="p", mode="slots", files=wish)
            assert take_all(client, "p", want) == len(want[number])


def test_wrong_uses_of_slots_are_refused(mounted: Mounted, files: dict[int, bytes]) -> None:
    """Mapping a warm plan, releasing what is not held, twice, or nothing that is a place."""
    (first, *_) = files
    with connect(mounted.path) as client, connect(mounted.path) as other:
        client.ask("plan", plan="w", files=[{"inode": first}])
        assert client.refused("map", plan="w") == "EINVAL"
        assert client.refused("release", plan="w", slots=[0]) == "EINVAL"
        assert client.refused("map", plan="none") == "ENOENT"
        client.ask("plan", plan="s", mode="slots", files=[{"inode": first}])
        assert client.refused("release", plan="s", slots=[0]) == "EINVAL"
        client.ask("map", plan="s")
        at = client.event("slot")["at"]
        assert other.refused("release", plan="s", slots=[at]) == "ENOENT"
        client.ask("release", plan="s", slots=[at])
        for wrong in ([at], [-1], [1], [1 << 62]):
            assert client.refused("release", plan="s", slots=wrong) == "EINVAL"
        wrong_types: tuple[object, ...] = (["0"], "0", {}, None, [True])
        for wrong_type in wrong_types:
            assert client.refused("release", plan="s", slots=wrong_type) == "EINVAL"
        group = {"id": "g", "rank": 0, "size": 2}
        client.ask("plan", plan="g", mode="slots", files=[{"inode": first}], group=group)
        group["size"] = 3
        wish = {"mode": "slots", "files": [{"inode": first}], "group": group}
        assert client.refused("plan", plan="h", **wish) == "EINVAL"


WRITER = """
import os, sys
from pathlib import Path
from tests.hints.client import connect
with connect(Path(sys.argv[1])) as client:
    client.ask("plan", plan="p", mode="slots", files=[{"inode": int(sys.argv[2])}])
    client.ask("map", plan="p")
    client.event("slot")
    for flags in (os.O_RDWR, os.O_WRONLY):
        try:
            os.open(f"/proc/self/fd/{client.fds[0]}", flags)
            print("opened for writing")
        except OSError as error:
            print(error.strerror)
"""


@pytest.mark.parametrize("uid", [0, 1000], ids=["root", "another user"])
def test_the_arena_cannot_be_written_by_who_gets_it(weights: Path, uid: int) -> None:
    """Opening the descriptor anew for writing fails for root, and for a user who may read all."""
    with open_mount(f"file://{weights}", "--set", "mount.allow_other=true") as mounted:
        number = inode(mounted.path / "a.safetensors")
        done = subprocess.run(
            ["setpriv", "--reuid", str(uid), "--clear-groups", "--inh-caps", "+dac_read_search",
             "--ambient-caps", "+dac_read_search",
             sys.executable, "-c", WRITER, str(mounted.path), str(number)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "opened" not in done.stdout
        assert len(done.stdout.splitlines()) == 2


PART = """
import sys
from pathlib import Path
from tests.hints.client import connect
with connect(Path("/mnt/m")) as client:
    print(client.ask("hello", protocol=[1])["features"])
    wish = [{"inode": int(sys.argv[1])}]
    print(client.refused("plan", plan="p", mode="slots", files=wish))
    client.ask("plan", plan="p", files=wish)
"""


def test_who_sees_a_part_of_the_mount_gets_no_slots(mounted: Mounted) -> None:
    """A container with a sub-directory is served warm plans of it: the arena holds other files."""
    script = (
        'mount -t tmpfs none /mnt && mkdir /mnt/m && mount --bind "$1" /mnt/m '
        '&& umount -l "$2" && shift 2 && exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh",
         str(mounted.path / "sub"), str(mounted.path), sys.executable, "-c", PART,
         str(inode(mounted.path / "sub" / "c.bin"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['warm']", "EACCES"]
