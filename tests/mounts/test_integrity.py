"""Wrong bytes on the wire and in the store, against the checksums that push noted."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.azurite import ACCOUNT, Azurite
from tests.harness.corrupting import CorruptingWire, open_corrupting_wire
from tests.harness.fake_gcs import FakeGcs
from tests.harness.mounted import ROOT, Mounted, MountFailed, open_mount, run_cli
from tests.harness.redis_server import PASSWORD, open_redis
from tests.harness.weed import Weed

MIB = 1 << 20
SIZE = 20 * MIB + 12_345
"""More than two ranges, and an end in the middle of a block."""

DATA = random.Random(11).randbytes(SIZE)
MARK = DATA[9 * MIB : 9 * MIB + 40]
"""Bytes that are nowhere else: the wire gets the last of them wrong."""

CHECK = ("--set", "engine.checksums=check")


@dataclass(frozen=True, slots=True)
class Place:
    """A store that a model was pushed to; `address` is its server's, "host:port"."""

    source: str
    environment: dict[str, str]
    address: str

    def behind(self, wire: CorruptingWire) -> Place:
        """The same place, seen through a wire."""
        environment = {
            k: v.replace(self.address, wire.address) for k, v in self.environment.items()
        }
        return Place(self.source.replace(self.address, wire.address), environment, wire.address)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to push."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "weights.bin").write_bytes(DATA)
    (made / "sub" / "config.json").write_bytes(b'{"a": 1}')
    return made


@pytest.fixture(params=["s3", "gcs", "azure", "redis"])
def place(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Place]:
    """That folder, pushed to each kind of store that has a wire."""
    with _open_place(request, request.param, tmp_path) as made:
        push(folder, made)
        yield made


@contextmanager
def _open_place(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Place]:
    if kind == "s3":
        weed: Weed = request.getfixturevalue("weed")
        bucket: str = request.getfixturevalue("bucket")
        yield Place(f"s3://{bucket}/m", weed.environment, weed.endpoint.partition("//")[2])
    elif kind == "gcs":
        google: FakeGcs = request.getfixturevalue("fake_gcs")
        container: str = request.getfixturevalue("gcs_bucket")
        yield Place(f"gs://{container}/m", google.environment, google.endpoint.partition("//")[2])
    elif kind == "azure":
        azurite: Azurite = request.getfixturevalue("azurite_environment")
        container = request.getfixturevalue("container")
        address = azurite.endpoint.partition("//")[2].partition("/")[0]
        yield Place(f"az://{ACCOUNT}/{container}/m", azurite.environment, address)
    else:
        with open_redis(tmp_path / "redis", password=PASSWORD) as redis:
            address = redis.source.partition("//")[2]
            yield Place(f"{redis.source}/0?model=m", redis.environment, address)


def push(folder: Path, place: Place) -> None:
    """Push the folder there, as a user does."""
    environment = {**os.environ, **place.environment}
    done = run_cli("push", str(folder), place.source, environment=environment, timeout_s=60)
    assert done.returncode == 0, done.stderr


def mount_through(
    place: Place, wire: CorruptingWire, *options: str
) -> AbstractContextManager[Mounted]:
    """Mount it through the wire; warnings are what these tests are about."""
    seen = place.behind(wire)
    return open_mount(seen.source, *options, environment=seen.environment, warnings_expected=True)


def test_a_wrong_byte_on_the_wire_is_fetched_again(place: Place) -> None:
    """The reader gets the right bytes, the counters say that there were wrong ones, and the log."""
    with open_corrupting_wire(place.address) as wire, mount_through(place, wire, *CHECK) as mounted:
        wire.flip(MARK, 2)
        assert (mounted.path / "weights.bin").read_bytes() == DATA
        assert (mounted.path / "sub" / "config.json").read_bytes() == b'{"a": 1}'
        assert wire.flipped == 2
        counters = mounted.counters()
        assert counters["checksum_mismatches"] == 2
        assert counters["checksums_verified_bytes"] >= SIZE + 8
        assert counters["checksums_missing_bytes"] == 0
        warnings = mounted.status()["warnings"]
        assert sum("wrong bytes between 9437184 and 10485760" in line for line in warnings) == 2


@pytest.mark.parametrize("place", ["s3", "redis"], indirect=True)
def test_a_wire_that_stays_wrong_is_an_error(place: Place) -> None:
    """After three tries the read fails with EIO, the rest of the file is read, and then all."""
    with open_corrupting_wire(place.address) as wire, mount_through(place, wire, *CHECK) as mounted:
        wire.flip(MARK, 1000)
        with (mounted.path / "weights.bin").open("rb", buffering=0) as file:
            with pytest.raises(OSError, match="Input/output") as raised:
                os.pread(file.fileno(), 4096, 9 * MIB)
            assert raised.value.errno == errno.EIO
            assert os.pread(file.fileno(), 4096, 3 * MIB) == DATA[3 * MIB : 3 * MIB + 4096]
            assert mounted.counters()["checksum_mismatches"] >= 3
            wire.flip(MARK, 0)
            assert os.pread(file.fileno(), 4096, 9 * MIB) == DATA[9 * MIB : 9 * MIB + 4096]
        assert (mounted.path / "weights.bin").read_bytes() == DATA


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_without_checks_nobody_notices(place: Place) -> None:
    """What the checks are for: TCP takes the wrong byte for a right one."""
    with open_corrupting_wire(place.address) as wire, mount_through(place, wire) as mounted:
        wire.flip(MARK, 1)
        got = (mounted.path / "weights.bin").read_bytes()
        assert [i for i in range(SIZE) if got[i] != DATA[i]] == [9 * MIB + 39]
        assert mounted.status()["checksums"] == {
            "mode": "off", "why": "engine.checksums is off"
        }  # fmt: skip


def test_a_wrong_byte_in_the_store_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that changed where it is stored, its version the same, is EIO with a sentence.

    In a directory, by a disk that rots: the file's time and size stay. In Redis, in a chunk.
    """
    directory = tmp_path / "there"
    directory.mkdir()
    place = Place(f"file://{directory}", {}, "")
    push(folder, place)
    stored = directory / "weights.bin"
    status = stored.stat()
    with stored.open("r+b") as file:
        file.seek(9 * MIB + 39)
        file.write(bytes([DATA[9 * MIB + 39] ^ 1]))
    os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))
    check_rotten(place)
    with open_redis(tmp_path / "redis") as redis:
        place = Place(f"{redis.source}/0?model=m", redis.environment, "")
        push(folder, place)
        with redis.client() as client:
            chunks = sorted(client.scan_iter("fusefs:chunk:*", 1000))
            (chunk,) = [key for key in chunks if MARK in client.get(key)]
            value = client.get(chunk)
            at = value.index(MARK) + 39
            client.setrange(chunk, at, bytes([value[at] ^ 1]))
        check_rotten(place)


def check_rotten(place: Place) -> None:
    """Everything can be read but for the block with the wrong byte."""
    with open_mount(
        place.source, *CHECK, environment=place.environment, warnings_expected=True
    ) as mounted:
        with (mounted.path / "weights.bin").open("rb", buffering=0) as file:
            with pytest.raises(OSError, match="Input/output"):
                os.pread(file.fileno(), 10, 9 * MIB)
            assert os.pread(file.fileno(), MIB, 10 * MIB) == DATA[10 * MIB : 11 * MIB]
        assert mounted.counters()["checksum_mismatches"] >= 3
        warnings = mounted.status()["warnings"]
        assert any("weights.bin' came with wrong bytes between 9437184" in w for w in warnings)


@pytest.fixture(params=["s3", "gcs"])
def unnoted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The file as others upload it: the store has one CRC of the whole."""
    with _open_place(request, request.param, tmp_path) as made:
        bucket = made.source.split("/")[2]
        if request.param == "s3":
            weed: Weed = request.getfixturevalue("weed")
            (tmp_path / "weights.bin").write_bytes(DATA)
            kind = {"ChecksumAlgorithm": "CRC64NVME"}
            client = weed.client()
            client.upload_file(str(tmp_path / "weights.bin"), bucket, "m/weights.bin", kind)
            client.close()
        else:
            google: FakeGcs = request.getfixturevalue("fake_gcs")
            google.put(bucket, "m/weights.bin", DATA)
        yield made


def test_an_object_with_one_checksum(unnoted: Place) -> None:
    """Who reads all of it while it is wrong gets EIO before the end, never all the bytes.

    Opened anew, it is fetched anew, what the kernel had of it included. A block that nobody has had
    by then, as on a busy machine, is fetched again at once: no error, right bytes.
    """
    with (
        open_corrupting_wire(unnoted.address) as wire,
        mount_through(unnoted, wire, *CHECK) as mounted,
    ):
        path = mounted.path / "weights.bin"
        wire.flip(DATA[:40], 1)  # of the block that is read first
        failed, got = 0, b""
        try:
            got = path.read_bytes()
        except OSError as error:
            failed = error.errno or 0
        assert wire.flipped == 1
        if failed:
            assert failed == errno.EIO
            assert any("load it again" in line for line in mounted.status()["warnings"])
        else:
            assert got == DATA
        assert path.read_bytes() == DATA
        counters = mounted.counters()
        assert counters["checksum_mismatches"] == 1
        assert counters["checksums_verified_bytes"] >= SIZE


@pytest.mark.parametrize("place", ["azure"], indirect=True)
def test_what_has_no_checksum(place: Place, azurite_environment: Azurite) -> None:
    """`check` reads it, counts it and says so; `require` refuses it, and nothing else."""
    container = place.source.split("/")[3]
    with azurite_environment.client() as client:
        client.get_blob_client(container, "m/other.bin").upload_blob(DATA[:MIB])
    with open_mount(place.source, *CHECK, environment=place.environment) as mounted:
        assert (mounted.path / "weights.bin").read_bytes() == DATA
        assert mounted.status()["checksums"]["why"] is None
        assert (mounted.path / "other.bin").read_bytes() == DATA[:MIB]
        assert mounted.counters()["checksums_missing_bytes"] == MIB
        shown = mounted.run_cli("status", str(mounted.path)).stdout
        assert "compared, 0 times wrong, 1.0 MiB without: some files have none" in shown
        assert (
            mounted.status()["checksums"]["why"] == "some files have none: fusefs push notes them"
        )
    with open_mount(
        place.source,
        "--set",
        "engine.checksums=require",
        environment=place.environment,
        warnings_expected=True,
    ) as mounted:
        assert (mounted.path / "weights.bin").read_bytes() == DATA
        with pytest.raises(OSError, match="not supported") as raised:
            (mounted.path / "other.bin").read_bytes()
        assert raised.value.errno == errno.EOPNOTSUPP
        assert any("push it with fusefs push" in line for line in mounted.status()["warnings"])


def test_what_computes_checksums_must_be_there(folder: Path, tmp_path: Path) -> None:
    """Without the packages a mount that should check does not start, and says what to install."""
    shadow = tmp_path / "shadow" / "awscrt"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text('raise ModuleNotFoundError("no", name="awscrt")\n')
    environment = {"PYTHONPATH": f"{shadow.parent}:{ROOT}"}
    source = f"file://{folder}"
    with (
        pytest.raises(MountFailed, match=r"pip install 'fusefs\[checksums\]'") as failed,
        open_mount(source, *CHECK, environment=environment),
    ):
        pass
    assert failed.value.status == 2
    with open_mount(source, environment=environment) as mounted:
        assert (mounted.path / "weights.bin").read_bytes() == DATA
        shown = mounted.run_cli("status", str(mounted.path)).stdout
        assert "nothing is compared: engine.checksums is off" in shown
