"""What ls, stat and find see: names, sizes, times, modes, and what it costs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mounted import Mounted, open_mount
from tests.harness.proxy import open_recording_proxy
from tests.harness.weed import Weed
from tests.mounts.conftest import Twins


def put_all(client: Any, bucket: str, keys: list[str]) -> None:
    """Put small objects quickly."""

    def put(key: str) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, keys))


@pytest.fixture(scope="module")
def mounted(weed: Weed, plain_bucket: str) -> Iterator[Mounted]:
    """The plain directory's bucket, mounted."""
    with open_mount(f"s3://{plain_bucket}", environment=weed.environment) as mount:
        yield mount


def test_the_tree_is_the_same(twins: Twins) -> None:
    """Names and sizes agree with the plain directory, at every level."""

    def walk(root: Path) -> list[tuple[str, int]]:
        files = [path for path in root.rglob("*") if path.is_file()]
        return sorted((str(path.relative_to(root)), path.stat().st_size) for path in files)

    assert walk(twins.mounted.path) == walk(twins.plain)


def test_attributes_are_those_of_a_read_only_disk(mounted: Mounted, plain: Path) -> None:
    """Modes, link counts, owners and times are set, and writing is not allowed."""
    file, directory = (mounted.path / "big.bin").stat(), (mounted.path / "sub").stat()
    assert stat.filemode(file.st_mode) == "-r--r--r--"
    assert stat.filemode(directory.st_mode) == "dr-xr-xr-x"
    assert (file.st_nlink, file.st_uid, file.st_gid) == (1, os.geteuid(), os.getegid())
    assert directory.st_nlink >= 2
    assert abs(file.st_mtime - (plain / "big.bin").stat().st_mtime) < 3600
    assert file.st_blocks * 512 >= file.st_size


def test_inodes_are_stable_and_distinct(mounted: Mounted) -> None:
    """The same name keeps its number through forgetting; two names have two."""
    names = ["big.bin", "empty", "one", "sub", "sub/a.json"]
    before = [(mounted.path / name).stat().st_ino for name in names]
    Path("/proc/sys/vm/drop_caches").write_text("2")
    after = [(mounted.path / name).stat().st_ino for name in names]
    assert before == after
    assert len(set(before)) == len(names)


def test_ls_shows_dot_entries_and_types(mounted: Mounted) -> None:
    """`ls -la` and scandir know what is a directory without asking again."""
    done = subprocess.run(
        ["ls", "-la", str(mounted.path)], capture_output=True, text=True, check=True, timeout=30
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()[1:]]
    assert names[:2] == [".", ".."]
    kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in os.scandir(mounted.path)}
    assert kinds["sub"] and not kinds["big.bin"]


def test_df_answers(mounted: Mounted) -> None:
    """Statfs tells a size, and that nothing is free."""
    os.listdir(mounted.path)
    answer = os.statvfs(mounted.path)
    assert answer.f_blocks * answer.f_frsize >= (mounted.path / "big.bin").stat().st_size
    assert answer.f_bavail == 0
    assert answer.f_namemax == 255


MUTATIONS: dict[str, Callable[[Path], object]] = {
    "create": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
    "open for writing": lambda root: os.open(root / "one", os.O_WRONLY),
    "open for both": lambda root: os.open(root / "one", os.O_RDWR),
    "truncate on open": lambda root: os.open(root / "one", os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda root: os.truncate(root / "one", 0),
    "unlink": lambda root: os.unlink(root / "one"),
    "rename": lambda root: os.rename(root / "one", root / "two"),
    "link": lambda root: os.link(root / "one", root / "two"),
    "symlink": lambda root: os.symlink("one", root / "two"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rmdir": lambda root: os.rmdir(root / "sub"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "chmod": lambda root: os.chmod(root / "one", 0o777),
    "chown": lambda root: os.chown(root / "one", 1, 1),
    "utime": lambda root: os.utime(root / "one"),
    "setxattr": lambda root: os.setxattr(root / "one", "user.x", b"1"),
    "removexattr": lambda root: os.removexattr(root / "one", "user.x"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_erofs(mounted: Mounted, name: str) -> None:
    """Nothing can be changed, and the errno says why."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is asserted
        MUTATIONS[name](mounted.path)
    assert caught.value.errno == errno.EROFS


def test_what_is_not_there_has_the_usual_errnos(mounted: Mounted) -> None:
    """ENOENT, ENOTDIR, EISDIR, ENAMETOOLONG, ENODATA, as on any disk."""
    cases: list[tuple[int, Callable[[], object]]] = [
        (errno.ENOENT, lambda: os.stat(mounted.path / "absent")),
        (errno.ENOENT, lambda: os.stat(mounted.path / "absent" / "below")),
        (errno.ENOTDIR, lambda: os.stat(mounted.path / "one" / "below")),
        (errno.EISDIR, (mounted.path / "sub").read_bytes),
        (errno.ENAMETOOLONG, lambda: os.stat(mounted.path / ("n" * 256))),
        (errno.ENODATA, lambda: os.getxattr(mounted.path / "one", "user.unknown")),
        (errno.EINVAL, lambda: os.readlink(mounted.path / "one")),
    ]
    for number, attempt in cases:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is asserted
            attempt()
        assert caught.value.errno == number


def test_keys_that_are_no_file_names_follow_the_rule(weed: Weed, bucket: str) -> None:
    """Hidden or shadowed as documented: never a crash, never an escape; the rest is all there."""
    client = weed.client()
    shown = ["plain", "dir/x", "with space", "uml-ü", "plus+plus", "per%2Fcent", "a b/c d"]
    put_all(client, bucket, shown)
    client.put_object(Bucket=bucket, Key="marker/", Body=b"")
    # SeaweedFS keeps files in directories itself, so it normalises some of these; what it lists is
    # what counts. (The whole rule is tested on values in tests/tree.)
    for key in ("a//b", "dir/../escape", "x/./y", "n" * 300):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=b"hidden?")
        except client.exceptions.ClientError:
            continue
    with open_mount(
        f"s3://{bucket}", environment=weed.environment, warnings_expected=True
    ) as mounted:
        for key in shown:
            assert (mounted.path / key).read_bytes() == key.encode()
        assert (mounted.path / "marker").is_dir()
        for directory, directories, files in os.walk(mounted.path):
            for name in directories + files:
                assert name not in {"", ".", ".."} and len(name.encode()) <= 255
            assert Path(directory).resolve().is_relative_to(mounted.path)


def test_listing_10_000_objects_costs_10_requests(weed: Weed, bucket: str, tmp_path: Path) -> None:
    """Ten pages, no HEAD; and stat of all of them afterwards costs nothing."""
    keys = [f"many/file-{number:05d}" for number in range(10_000)]
    put_all(weed.client(), bucket, keys)
    with open_recording_proxy(weed.endpoint, tmp_path) as proxy:
        environment = {**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        with open_mount(f"s3://{bucket}/many", environment=environment) as mounted:
            proxy.clear()
            names = os.listdir(mounted.path)
            assert sorted(names) == [key.removeprefix("many/") for key in keys]
            assert len(proxy.requests("LIST")) == 10
            sizes = {(mounted.path / name).stat().st_size for name in names}
            assert sizes == {len(keys[0])}
            assert [(mounted.path / name).exists() for name in ("absent", "gone")] == [False, False]
            assert len(proxy.requests()) == 10


def test_a_prefix_is_the_root(weed: Weed, plain_bucket: str) -> None:
    """`s3://bucket/prefix` shows what lies below the prefix, and nothing else."""
    with open_mount(f"s3://{plain_bucket}/sub", environment=weed.environment) as mounted:
        assert sorted(os.listdir(mounted.path)) == ["a.json", "deep"]
        assert not (mounted.path / ".." / "big.bin").exists()


def test_owner_and_mode_options_are_honoured(weed: Weed, plain_bucket: str) -> None:
    """uid, gid, umask and allow_other mean what they mean for other file systems."""
    options = "allow_other,uid=1234,gid=4321,umask=0227"
    with open_mount(f"s3://{plain_bucket}", "-o", options, environment=weed.environment) as mounted:
        status = (mounted.path / "one").stat()
        assert (status.st_uid, status.st_gid) == (1234, 4321)
        assert stat.S_IMODE(status.st_mode) == 0o440
        as_owner = ["setpriv", "--reuid", "1234", "--regid", "4321", "--clear-groups"]
        as_stranger = ["setpriv", "--reuid", "9999", "--regid", "9999", "--clear-groups"]
        command = ["cat", str(mounted.path / "one")]
        assert (
            subprocess.run(
                [*as_owner, *command], capture_output=True, timeout=30, check=False
            ).returncode
            == 0
        )
        refused = subprocess.run(
            [*as_stranger, *command], capture_output=True, timeout=30, check=False
        )
        assert b"Permission denied" in refused.stderr


def test_other_users_are_locked_out_by_default(mounted: Mounted) -> None:
    """Without allow_other nobody but the mounting user sees anything."""
    done = subprocess.run(
        ["setpriv", "--reuid", "9999", "--clear-groups", "ls", str(mounted.path)],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert b"Permission denied" in done.stderr
