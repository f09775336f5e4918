"""push, pull, ls and cat as their users run them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.commandline import ROOT, Ended, run_fusefs
from tests.transfer.folders import contents, fill

PART_BYTES = 8 << 20
LARGE = {"model.safetensors": 5 * PART_BYTES + 3, "config.json": 100}
ODD = {"model.safetensors": 9_000_000, "sub/deep/a b+%2F.json": 20, "empty": 0, "ünï": 3, "-x": 1}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where pushes go; not there yet."""
    return tmp_path / "place"


def report_of(ended: Ended) -> dict[str, int]:
    """The report that --json printed."""
    assert (ended.status, ended.stderr) == (0, "")
    report: dict[str, int] = json.loads(ended.stdout)
    return report


def test_help_shows_an_example() -> None:
    """Every command's help ends with how to call it."""
    for command in ("push", "pull", "ls", "cat"):
        ended = run_fusefs(command, "--help")
        assert ended.status == 0
        assert f"for example:\n  fusefs {command} " in ended.stdout


def test_pushed_and_pulled_is_the_same(tmp_path: Path, place: Path) -> None:
    """A folder with odd names, pushed and pulled, is byte-identical; both report what they did."""
    model = fill(tmp_path / "model", ODD)
    source = f"file://{place}"
    report = report_of(run_fusefs("push", model, source, "--json"))
    assert (report["files"], report["bytes_moved"]) == (len(ODD), sum(ODD.values()))
    assert contents(place) == contents(model)
    pulled = run_fusefs("pull", source, tmp_path / "pulled")
    assert pulled.stdout.startswith(f"pulled {len(ODD)} of {len(ODD)} files, 8.6 MiB in ")
    assert contents(tmp_path / "pulled") == contents(model)
    again = run_fusefs("push", model, source)
    assert (again.status, again.stdout) == (0, f"already there: {len(ODD)} files, 8.6 MiB\n")


def test_another_model_is_refused_in_one_sentence(tmp_path: Path, place: Path) -> None:
    """Without --force: exit 1, and one sentence that names --force; a dry run only tells."""
    source = f"file://{place}"
    assert run_fusefs("push", fill(tmp_path / "a", {"x.safetensors": 10}), source).status == 0
    other = fill(tmp_path / "b", {"y.safetensors": 10})
    refused = run_fusefs("push", other, source)
    assert refused.status == 1
    assert "x.safetensors" in refused.sentence and "--force" in refused.sentence
    told = run_fusefs("push", other, source, "--force", "--dry-run").stdout
    assert told.startswith("would push y.safetensors\nwould remove x.safetensors\n")
    assert set(contents(place)) == {"x.safetensors"}
    assert run_fusefs("push", other, "--force", source).status == 0
    assert set(contents(place)) == {"y.safetensors"}


def dying(verb: str, origin: Path, place: Path, pieces: int) -> None:
    """A transfer that SIGKILL ends."""
    command = [sys.executable, "-m", "tests.transfer.dying", verb, origin, place, pieces]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_push_goes_on(tmp_path: Path, place: Path) -> None:
    """After SIGKILL the same command sends only what is missing; until then nothing is to see."""
    model = fill(tmp_path / "model", LARGE)
    dying("push", model, place, 3)
    assert contents(place) == {}
    report = report_of(run_fusefs("push", model, f"file://{place}", "--json"))
    assert report["bytes_there"] == 3 * PART_BYTES
    assert report["bytes_moved"] == sum(LARGE.values()) - 3 * PART_BYTES
    assert contents(place) == contents(model)


def test_a_killed_pull_goes_on(tmp_path: Path, place: Path) -> None:
    """After SIGKILL the same command fetches only what is missing; until then nothing is to see."""
    origin = fill(tmp_path / "origin", LARGE)
    dying("pull", origin, place, 3)
    assert {path.name for path in place.iterdir()} == {".fusefs-pull"}
    report = report_of(run_fusefs("pull", f"file://{origin}", place, "--json"))
    assert report["bytes_there"] == 3 * PART_BYTES + LARGE["config.json"]
    assert contents(place) == contents(origin)
    assert not (place / ".fusefs-pull").exists()


def test_discard_gives_a_push_up(tmp_path: Path, place: Path) -> None:
    """After a kill, --discard removes the parts, and the next push sends all."""
    model = fill(tmp_path / "model", LARGE)
    dying("push", model, place, 3)
    discarded = run_fusefs("push", "--discard", f"file://{place}")
    assert discarded.stdout == f"discarded 1 unfinished files below file://{place}\n"
    report = report_of(run_fusefs("push", model, f"file://{place}", "--json"))
    assert report["bytes_there"] == 0


def test_failures_say_how_to_go_on(tmp_path: Path) -> None:
    """A push that fails when it has begun names the command that goes on and the one to give up."""
    model = fill(tmp_path / "model", {"config.json": 10, "model.safetensors": 10})
    (tmp_path / "place" / "config.json").mkdir(parents=True)
    (tmp_path / "place" / "config.json" / "x").touch()
    ended = run_fusefs("push", model, f"file://{tmp_path}/place")
    assert ended.status == 1
    assert "config.json" in ended.sentence
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / ".fusefs").write_text("in the way")
    failed = run_fusefs("push", model, f"file://{blocked}")
    assert failed.status == 1
    assert f"fusefs push --discard file://{blocked}" in failed.sentence


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, place: Path) -> None:
    """SIGINT ends a push with status 130 and one sentence, and the next one goes on."""
    model = fill(tmp_path / "model", {"model.safetensors": 1})
    os.truncate(model / "model.safetensors", 20 << 30)  # a hole: hashing it takes many seconds
    command = [sys.executable, "-m", "fusefs.cli", "push", str(model), f"file://{place}"]
    stderr, theirs = pty.openpty()  # the bar, which a terminal gets, tells when it is under way
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=theirs) as push:
        os.close(theirs)
        seen = b""
        while b"hashing" not in seen:
            seen += os.read(stderr, 1000)
        push.send_signal(signal.SIGINT)
        while b"again" not in seen:
            seen += os.read(stderr, 1000)
        assert push.wait(30) == 130
    os.close(stderr)
    assert b"fusefs: interrupted; run the same command again" in seen


@pytest.mark.parametrize(
    "arguments",
    [
        ("push", "x"),
        ("push", "x", "nonsense"),
        ("push", "x", "file:///x", "--jobs", "0"),
        ("pull", "file:///x", "y", "--jobs", "many"),
        ("cat", "file:///x", "--range", "5-3"),
        ("cat", "s3://bucket"),
    ],
)
def test_what_makes_no_sense_is_usage(arguments: tuple[str, ...]) -> None:
    """Wrong usage is one sentence and exit status 2."""
    ended = run_fusefs(*arguments)
    assert ended.status == 2
    assert ended.sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: (m / "link").symlink_to("nowhere"), "symlink to nothing"),
        (lambda m: (m / "link").symlink_to("/etc/hostname"), "symlink out of"),
        (lambda m: (m / "link").symlink_to(m), "symlink to a folder"),
        (lambda m: os.mkfifo(m / "pipe"), "neither a file nor a folder"),
    ],
)
def test_what_cannot_be_pushed_is_said_first(
    tmp_path: Path, place: Path, make: object, said: str
) -> None:
    """Dangling and leading-out symlinks and special files: one sentence, nothing is sent."""
    model = fill(tmp_path / "model", {"config.json": 10})
    assert callable(make)
    make(model)
    ended = run_fusefs("push", model, f"file://{place}")
    assert ended.status == 1
    assert said in ended.sentence
    assert not place.exists()


def test_the_hugging_face_cache_is_pushed(tmp_path: Path, place: Path) -> None:
    """A snapshot, symlinks to blobs beside it, becomes files; what is git's stays here."""
    repository = tmp_path / "models--org--name"
    fill(repository / "blobs", {"abc": 100, "def": 10})
    snapshot = repository / "snapshots" / "1234"
    fill(snapshot, {".git/config": 5, ".cache/huggingface/x": 1})
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "config.json").symlink_to("../../blobs/def")
    ended = run_fusefs("push", snapshot, f"file://{place}")
    assert ended.status == 0
    assert ended.stderr.splitlines() == [
        "fusefs: left out: .cache (not part of a model)",
        "fusefs: left out: .git (not part of a model)",
    ]
    assert {name: len(data) for name, data in contents(place).items()} == {
        "model.safetensors": 100,
        "config.json": 10,
    }


def test_ls_goes_deep_and_shows_versions(tmp_path: Path) -> None:
    """`ls -R` lists every file below, `ls -l` shows versions, a file is listed by itself."""
    folder = fill(tmp_path / "source", {"a": 1, "sub/b": 2, "sub/deep/c": 3, ".fusefs/x": 1})
    for path in folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    rows = json.loads(run_fusefs("ls", "-R", "--json", f"file://{folder}").stdout)
    assert [(row["name"], row["size"]) for row in rows] == [
        ("a", 1),
        ("sub/b", 2),
        ("sub/deep/c", 3),
    ]
    names = [
        row["name"] for row in json.loads(run_fusefs("ls", "--json", f"file://{folder}").stdout)
    ]
    assert names == ["a", "sub/"]
    alone = run_fusefs("ls", f"file://{folder}/sub/b")
    assert alone.stdout == "2  2023-11-14T22:13:20Z  b\n"
    (row,) = json.loads(run_fusefs("ls", "-l", "--json", f"file://{folder}/a").stdout)
    assert row["etag"].split("-")[1] == "1"
    assert row["etag"] in run_fusefs("ls", "-l", f"file://{folder}").stdout


def test_cat_writes_an_object(tmp_path: Path) -> None:
    """`cat` writes all of an object, or a range of it; a range beyond it is one sentence."""
    folder = fill(tmp_path / "source", {"sub/big": 20_000_000, "text": 0})
    (folder / "text").write_text("0123456789")
    command = [sys.executable, "-m", "fusefs.cli", "cat", f"file://{folder}/sub/big"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout == (folder / "sub/big").read_bytes()
    text = f"file://{folder}/text"
    assert run_fusefs("cat", text, "--range", "2-5").stdout == "234"
    assert run_fusefs("cat", text, "--range", "8-").stdout == "89"
    beyond = run_fusefs("cat", text, "--range", "5-11")
    assert (beyond.status, "10 bytes" in beyond.sentence) == (1, True)
    missing = run_fusefs("cat", f"file://{folder}/missing")
    assert (missing.status, "missing" in missing.sentence) == (1, True)


def test_cat_into_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """`fusefs cat … | head -c 1` says nothing on stderr."""
    folder = fill(tmp_path / "source", {"big": 30_000_000})
    command = [sys.executable, "-m", "fusefs.cli", "cat", f"file://{folder}/big"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout is not None and cat.stderr is not None
        assert len(cat.stdout.read(1)) == 1
        cat.stdout.close()
        assert cat.stderr.read() == b""
