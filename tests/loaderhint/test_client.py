"""The client: hints arrive, and nothing that a daemon does reaches the loader as an error."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import loaderhint
from loaderhint import channel, protocol
from loaderhint.client import Client
from loaderhint.files import open_files
from loaderhint.hints import open_client
from loaderhint.plan import PlanError
from loaderhint.wishes import EVENTS_MAX, Events, Group, Progress, Wanted, frames_of
from tests.harness.hint_server import HintServer

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def model(folder: Path) -> Path:
    """One file of three tensors, 400 bytes each."""
    tensors = {f"layers.{n}.w": np.full((10, 10), n, "f4") for n in range(3)}
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def connected(path: Path) -> Client:
    """A client for the mount that `path` is on."""
    with open_files(path) as files:
        client = open_client(files[0])
    assert client is not None
    return client


def test_a_hint_arrives(server: HintServer, model: Path) -> None:
    """A hint names files by inode and tensors by their bytes; progress comes back."""
    data_start = model.stat().st_size - 1200
    group = Group("job", 1, 4)
    with loaderhint.hint(
        model,
        tensors=["layers.2.w", "layers.0.w"],
        slices={"layers.0.w": slice(2, 4)},
        group=group,
    ) as hint:
        [request] = server.of("plan")
        assert hint.channel == "socket"
        assert hint.progress() == Progress(240, 480)
        hint.cancel()
        server.wait_for("cancel")
    assert request["files"] == [
        {
            "inode": model.stat().st_ino,
            "extents": [
                [data_start + 800, data_start + 1200],
                [data_start + 80, data_start + 160],
            ],
        }
    ]
    assert request["group"] == {"id": "job", "rank": 1, "size": 4}
    assert (request["mode"], request["order"]) == ("warm", "listed")


def test_whole_files_need_no_header(server: HintServer, folder: Path) -> None:
    """A hint of whole files reads none of them: any file will do."""
    for name in ("b.gguf", "a.bin"):
        (folder / name).write_bytes(b"no header")
    with loaderhint.hint([folder / "b.gguf", folder / "a.bin"]):
        [request] = server.of("plan")
    inodes = [(folder / name).stat().st_ino for name in ("b.gguf", "a.bin")]
    assert request["files"] == [{"inode": inode} for inode in inodes]


def test_without_a_daemon_nothing_happens(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mount, no socket, no file, no such tensor: a hint that does nothing, and no error."""
    with loaderhint.hint(model) as hint:
        assert (hint.channel, hint.progress()) == ("none", None)
        hint.cancel()
    with loaderhint.hint(folder / "gone") as hint:
        assert hint.channel == "none"
    assert loaderhint.progress(model) is None
    assert loaderhint.progress(folder / "gone") is None
    # Taken for a mount, but nobody listens there and there are no attributes.
    status = folder.stat()
    table = folder.parent / "mountinfo"
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    table.write_text(f"1 2 {number} / {folder} rw - fuse.fusefs fusefs rw\n")
    monkeypatch.setattr(channel, "MOUNTINFO", str(table))
    with loaderhint.hint(model) as hint:
        assert hint.channel == "none"
    with loaderhint.hint(model, tensors=["no such tensor"]) as hint:
        assert hint.channel == "none"
    monkeypatch.setattr(channel, "MOUNTINFO", str(folder / "gone"))
    with loaderhint.hint(model) as hint:
        assert hint.channel == "none"


def test_a_socket_on_a_plain_disk_is_not_asked(server: HintServer, model: Path) -> None:
    """Only what mountinfo calls a mount of fusefs is connected to."""
    Path(channel.MOUNTINFO).write_text("36 35 0:1 / / rw - overlay overlay rw\n")
    with loaderhint.hint(model) as hint:
        assert hint.channel == "none"
    assert server.requests == []


def test_an_unknown_order_is_the_callers_mistake(model: Path) -> None:
    """What no run could get right is said at once."""
    with pytest.raises(PlanError, match="listed, offset"):
        loaderhint.hint(model, order="ready")


def test_long_paths_have_a_socket_too(server: HintServer, folder: Path) -> None:
    """The 108 bytes of a socket's name are no limit to the path of the mount."""
    deep = folder / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (folder / ".fusefs").rename(deep / ".fusefs")
    (deep / "file").write_bytes(b"x")
    with loaderhint.hint(deep / "file") as hint:
        assert hint.channel == "socket"
    assert len(server.of("plan")) == 1


def test_a_socket_beside_a_file_of_the_mount_is_not_asked(
    server: HintServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a file may be anybody's, if the file alone was bound into it."""
    with open_files(model) as [file]:
        assert open_client(dataclasses.replace(file, device=file.device + 1)) is None
    assert server.requests == []


def test_descriptors_nobody_asked_for_are_closed(server: HintServer, model: Path) -> None:
    """Only the answer to `map` brings a descriptor; `nothing_left` counts the others."""
    client = connected(model)
    wanted = [Wanted(model.stat().st_ino)]
    assert client.plan("p", wanted, mode="slots") is not None
    mapped = client.map("p")
    assert mapped is not None
    os.close(mapped[1])
    server.behaviour.descriptors_for = {"progress"}
    assert client.progress("p") is not None
    assert client.progress("p") is not None
    client.close()


@pytest.mark.parametrize(
    "hello",
    [
        {"protocol": 2, "features": [], "limits": {}},
        {"protocol": 1},
        {"protocol": 1, "features": "warm", "limits": []},
    ],
)
def test_a_greeting_that_is_not_understood_is_no_daemon(
    server: HintServer, model: Path, hello: dict[str, object]
) -> None:
    """Another version, or half a greeting: the loader goes on without hints."""
    server.behaviour.hello = hello
    with loaderhint.hint(model) as hint:
        assert hint.channel == "none"


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff\xff\xff\xff",
    b"\x02\x00\x00\x00[]",
    b"\x04\x00\x00\x00nope",
    protocol.encode({"id": "x", "ok": None}),
    protocol.encode({"id": 99, "ok": {}}),
    b"\x10\x00",
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("op", ["hello", "plan", "progress"])
def test_garbage_never_reaches_the_loader(
    server: HintServer, model: Path, op: str, garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a daemon answers, a hint ends in bounded time without an error."""
    monkeypatch.setattr("loaderhint.channel.HELLO_TIMEOUT_S", 0.2)
    monkeypatch.setattr("loaderhint.client.REQUEST_TIMEOUT_S", 0.2)
    server.behaviour.instead[op] = garbage
    began = time.monotonic()
    with loaderhint.hint(model) as hint:
        progress = hint.progress()
    assert progress is None or op == "plan"
    assert time.monotonic() - began < 2


def test_a_silent_daemon_costs_a_bounded_wait(
    server: HintServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that hangs delays the loader by the timeout, once for each question."""
    monkeypatch.setattr("loaderhint.client.REQUEST_TIMEOUT_S", 0.1)
    server.behaviour.silent = {"plan", "progress"}
    began = time.monotonic()
    with loaderhint.hint(model) as hint:
        assert hint.progress() is None
    assert time.monotonic() - began < 1.5


def test_a_daemon_that_starts_again_gets_the_plans_again(server: HintServer, model: Path) -> None:
    """After a restart the same plan is there, without the loader having noticed."""
    with loaderhint.hint(model) as hint:
        server.wait_for("plan")
        server.stop()
        assert hint.progress() is None
        server.start()
        first, second = server.wait_for("plan", 2)
        assert first["plan"] == second["plan"]
        assert first["files"] == second["files"]
        assert hint.progress() is not None


def test_events_and_waiting(server: HintServer, model: Path) -> None:
    """A subscriber hears what is ready and that all is; a wait asks for bytes by inode."""
    client = connected(model)
    inode = model.stat().st_ino
    assert client.plan("p", [Wanted(inode, ((8, 20),))]) == Progress(6, 12)
    events = client.subscribe("p", every_bytes=4)
    assert events is not None
    ready, done = events.take(5), events.take(5)
    assert ready is not None and done is not None
    assert (ready["ev"], ready["extents"], done["ev"]) == ("ready", [[8, 20]], "done")
    assert client.wait("p", inode, (8, 20), 1.0)
    [wait] = server.of("wait")
    assert (wait["inode"], wait["start"], wait["stop"], wait["timeout_ms"]) == (inode, 8, 20, 1000)
    assert client.stats() == {"v": 1}
    client.close()
    assert client.progress("p") is None
    assert client.subscribe("q") is None


def test_an_end_nobody_has_read_yet_is_an_end(
    server: HintServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are ours no longer once the daemon hung up, though our thread has not noticed."""
    monkeypatch.setattr("loaderhint.client.REQUEST_TIMEOUT_S", 0.01)
    device = model.stat().st_dev
    connection = channel.connect(str(model.parent), device)
    client = Client(str(model.parent), device, connection)  # never started: it reads nothing
    assert client.plan("p", [Wanted(model.stat().st_ino)], mode="slots") is None
    assert client.holds("p")
    assert not client.holds("q")
    server.hang_up()
    assert not client.holds("p")
    client.close()
    connection.socket.close()


def test_many_threads_share_a_client(server: HintServer, model: Path) -> None:
    """Answers reach who asked, however many ask at a time."""
    client = connected(model)
    sizes: dict[int, Progress | None] = {}

    def ask(number: int) -> None:
        name = f"plan {number}"
        client.plan(name, [Wanted(model.stat().st_ino, ((0, 2 * number),))])
        sizes[number] = client.progress(name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert sizes == {number: Progress(number, 2 * number) for number in range(16)}
    assert len(server.of("progress")) == 16


def test_closing_hangs_up(server: HintServer, model: Path) -> None:
    """A closed hint leaves no connection, so that the daemon forgets its plans."""
    hint = loaderhint.hint(model)
    assert server.connected == 1
    hint.close()
    hint.close()
    deadline = time.monotonic() + 5
    while server.connected and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert server.connected == 0
    assert hint.progress() is None


def test_a_forked_child_leaves_the_connection_alone(server: HintServer, model: Path) -> None:
    """The child's copy is closed without a word; the parent's client goes on."""
    with loaderhint.hint(model) as hint:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if hint.progress() is None else 2
                hint.close()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert hint.progress() is not None
    assert len(server.of("hello")) == 1


def test_a_flood_is_not_kept() -> None:
    """Events nobody takes are bounded."""
    events = Events()
    assert all(events.put({}) for _ in range(EVENTS_MAX))
    assert not events.put({})
    assert events.take(0) == {}
    assert events.put({})


def test_a_plan_of_any_size_fits_its_frames() -> None:
    """A million extents become messages below the limit of a frame, within the daemon's limits."""
    wanted = [
        Wanted(2**63 + number, tuple((10**13 + n * 10, 10**13 + n * 10 + 5) for n in range(25_000)))
        for number in range(40)
    ]
    frames = list(frames_of(wanted, 39, 100_000))
    for files in frames:
        assert len(protocol.encode({"id": 1, "op": "plan", "files": files})) > 0
    flat = [file for files in frames for file in files]
    assert len({file["inode"] for file in flat}) == 39
    assert sum(len(file["extents"]) for file in flat) <= 100_000
    whole = list(frames_of([Wanted(number) for number in range(9_000)], 10_000, 1))
    assert [len(files) for files in whole] == [5_000, 4_000]


def test_a_long_plan_comes_in_pieces(server: HintServer, folder: Path) -> None:
    """The second message of a plan says that it belongs to the first."""
    path = folder / "file"
    path.write_bytes(bytes(100_000))
    client = connected(path)
    extents = tuple((2 * n, 2 * n + 1) for n in range(45_000))
    client.plan("long", [Wanted(path.stat().st_ino, extents)])
    client.close()
    assert [request.get("append", False) for request in server.of("plan")] == [False, True, True]
    sent = [extent for file in server.plans["long"]["files"] for extent in file["extents"]]
    assert [tuple(extent) for extent in sent] == list(extents)


def test_importing_is_cheap_and_needs_no_torch() -> None:
    """`import loaderhint` and a hint import the standard library alone, in few modules."""
    code = (
        "import sys; before = set(sys.modules); import loaderhint; loaderhint.hint('/dev/null');"
        "new = set(sys.modules) - before; bad = {'torch', 'numpy', 'fusefs', 'asyncio'} & new;"
        "print(len(new), bad)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    count, bad = output.split(" ", 1)
    assert bad.strip() == "set()"
    assert int(count) < 120
