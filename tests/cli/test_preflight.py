"""What `fusefs mount` refuses before it starts anything, by real runs of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.cli.preflight import check_fuse, resolve_mountpoint
from fusefs.errors import AccessDenied, FusefsError, ObjectNotFound
from fusefs.mount import kernel
from tests.cli.commandline import run_fusefs, run_mount8
from tests.cli.unanswered import open_unanswered

WITHOUT_DEVICES = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
"""Runs a command where /dev is empty."""

WRONG_DEVICE = (
    "unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && mkdir /dev/fuse && exec "$@"', "sh",
)  # fmt: skip
"""Runs a command where /dev/fuse is there and cannot be opened, not even by root."""

AS_ANOTHER_USER = ("unshare", "-U", "--map-user=1000", "--map-group=1000")


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source that could be mounted."""
    folder = tmp_path / "source"
    folder.mkdir()
    return f"file://{folder}"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """A folder that could be mounted on; at the end nothing may be mounted there."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bucket"], "scheme"),
        (["ftp://bucket"], "ftp"),
        (["s3://"], "bucket"),
        (["file://relative"], "absolute"),
        (["s3://key:hunter2@bucket"], "credentials"),
        (["s3://bucket", "-o", "no_such_option"], "no_such_option"),
        (["s3://bucket", "-o", "rw"], "read-only"),
        (["s3://bucket", "--set", "engine.memroy=1G"], "engine.memory"),
        (["s3://bucket", "--set", "engine.memory"], "COMPONENT.KEY=VALUE"),
        (["s3://bucket", "--memory", "1Q"], "1Q"),
        (["s3://bucket", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["s3://bucket", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_wrong_usage_exits_2_with_one_sentence(
    mountpoint: Path, arguments: list[str], said: str
) -> None:
    """A source or setting that makes no sense is one sentence and exit status 2."""
    ended = run_fusefs("mount", arguments[0], mountpoint, *arguments[1:])
    assert (ended.status, ended.stdout) == (2, "")
    assert said in ended.sentence
    assert "hunter2" not in ended.stderr


def test_a_mount_inside_its_own_source_is_refused(tmp_path: Path) -> None:
    """Listing such a source would walk into the mount that lists it."""
    (tmp_path / "inside").mkdir()
    ended = run_fusefs("mount", f"file://{tmp_path}", tmp_path / "inside")
    assert ended.status == 2
    assert "lies inside the source" in ended.sentence


@pytest.mark.parametrize("arguments", [[], ["mount"], ["mount", "s3://b"], ["dance"], ["umount"]])
def test_missing_arguments_exit_2_with_one_sentence(arguments: list[str]) -> None:
    """An incomplete command says what is missing, and where to read on."""
    ended = run_fusefs(*arguments)
    assert ended.status == 2
    assert "--help" in ended.sentence


def test_an_unknown_variable_exits_2(source: str, mountpoint: Path) -> None:
    """A FUSEFS_ variable nobody knows stops the mount by name."""
    ended = run_fusefs("mount", source, mountpoint, environ={"FUSEFS_MEMORY_SIZE": "1G"})
    assert ended.status == 2
    assert "FUSEFS_MEMORY_SIZE" in ended.sentence


def test_the_mountpoint_must_be_an_empty_folder(source: str, mountpoint: Path) -> None:
    """A mountpoint that is missing, a file or not empty is one sentence and exit status 1."""
    file = mountpoint / "file"
    file.touch()
    for path, said in (
        (mountpoint / "missing", "does not exist"),
        (mountpoint / "missing" / "deeper", "does not exist"),
        (file, "not a directory"),
        (file / "below", "not a directory"),
        (mountpoint, "not empty"),
    ):
        ended = run_fusefs("mount", source, path)
        assert ended.status == 1
        assert said in ended.sentence
        assert str(path) in ended.sentence
        assert kernel.find_mount(str(path)) is None


def test_a_mountpoint_in_use_is_refused_without_being_touched(
    source: str, mountpoint: Path
) -> None:
    """A mount that would hang is named from the mount table, and how to end it."""
    with open_unanswered(mountpoint):
        ended = run_fusefs("mount", source, mountpoint)
    assert ended.status == 1
    assert f"{mountpoint} is already a mount of s3://bucket/" in ended.sentence
    assert f"fusefs umount {mountpoint}" in ended.sentence


def test_a_dead_mount_is_explained(source: str, mountpoint: Path) -> None:
    """What a daemon that died leaves is told apart, with the command that removes it."""
    with open_unanswered(mountpoint) as mount:
        mount.die()
        ended = run_fusefs("mount", source, mountpoint)
    assert ended.status == 1
    assert "not connected" in ended.sentence
    assert f"fusefs umount {mountpoint}" in ended.sentence


def test_another_file_system_is_not_covered(source: str) -> None:
    """The root of any mount is refused."""
    ended = run_fusefs("mount", source, "/proc")
    assert ended.status == 1
    assert "/proc is already a mount (proc)" in ended.sentence


def test_a_machine_without_fuse_says_so(source: str, mountpoint: Path) -> None:
    """No /dev/fuse is one sentence that names modprobe and the container's option."""
    ended = run_fusefs("mount", source, mountpoint, prefix=WITHOUT_DEVICES)
    assert ended.status == 1
    assert "/dev/fuse is missing" in ended.sentence
    assert "--device /dev/fuse" in ended.sentence


def test_a_device_that_cannot_be_opened_says_so(source: str, mountpoint: Path) -> None:
    """A /dev/fuse that root may not open is one sentence that names what a container needs."""
    ended = run_fusefs("mount", source, mountpoint, prefix=WRONG_DEVICE)
    assert ended.status == 1
    assert "/dev/fuse cannot be opened" in ended.sentence


def test_another_user_needs_fusermount3(source: str, mountpoint: Path) -> None:
    """Without root and without fusermount3 the sentence names the package."""
    prefix = [*AS_ANOTHER_USER, "env", "PATH=/nonexistent"]
    ended = run_fusefs("mount", source, mountpoint, prefix=prefix)
    assert ended.status == 1
    assert "fusermount3 is not installed" in ended.sentence


def test_the_device_is_looked_at_as_whoever_mounts_uses_it(tmp_path: Path) -> None:
    """Root opens the device; for others fusermount3 does, so that it exists is enough."""
    with pytest.raises(ObjectNotFound, match="missing"):
        check_fuse(True, tmp_path / "fuse")
    with pytest.raises(ObjectNotFound, match="missing"):
        check_fuse(False, tmp_path / "fuse")
    with pytest.raises(AccessDenied, match="cannot be opened"):
        check_fuse(True, tmp_path)
    check_fuse(False, tmp_path)


def test_a_mountpoint_is_named_without_links(tmp_path: Path) -> None:
    """Links in a mountpoint's path and at its end are followed; a loop is one sentence."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "again").symlink_to(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    (real / "inner").mkdir()
    assert resolve_mountpoint(str(tmp_path / "again")) == str(real)
    assert resolve_mountpoint(str(tmp_path / "again" / "inner")) == str(real / "inner")
    assert resolve_mountpoint(str(tmp_path / "missing")) == str(tmp_path / "missing")
    with pytest.raises(FusefsError, match="loop"):
        resolve_mountpoint(str(tmp_path / "loop"))


def test_a_mount_behind_a_link_is_found_without_being_touched(tmp_path: Path) -> None:
    """Resolving a link to a mount that hangs does not hang."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    with open_unanswered(real):
        assert resolve_mountpoint(str(tmp_path / "link")) == str(real)


def test_mount8_is_answered_in_its_own_terms(source: str, mountpoint: Path) -> None:
    """-f checks and mounts nothing, -s -n -v -t are accepted, -N is refused, rw is no wish."""
    checked = run_mount8(source, mountpoint, "-sfnv", "-o", "rw,_netdev,umask=077", "-t", "fusefs")
    assert (checked.status, checked.stdout, checked.stderr) == (0, "", "")
    assert kernel.find_mount(str(mountpoint)) is None
    missing = run_mount8(source, mountpoint / "missing", "-f")
    assert missing.status == 1
    assert "does not exist" in missing.sentence
    unknown = run_mount8(source, mountpoint, "-f", "-o", "no_such_option")
    assert unknown.status == 2
    assert "no_such_option" in unknown.sentence
    elsewhere = run_mount8(source, mountpoint, "-f", "-N", "/proc/1/ns/mnt")
    assert elsewhere.status == 2
    assert "nsenter" in elsewhere.sentence
