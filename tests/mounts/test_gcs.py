"""A bucket of Google's API as a mount shows it."""

from __future__ import annotations

import errno
import random

import pytest

from tests.harness.fake_gcs import FakeGcs
from tests.harness.mounted import MountFailed, open_mount

SIZE = (20 << 20) + 11
"""More than two ranges, so that several workers have a part in it."""


def test_files_are_the_objects(fake_gcs: FakeGcs, gcs_bucket: str) -> None:
    """Names below a prefix are files, whose bytes are the objects'; a new version shows as new."""
    data = random.Random(0).randbytes(SIZE)
    fake_gcs.put(gcs_bucket, "models/llama/model.safetensors", data)
    fake_gcs.put(gcs_bucket, "models/llama/config é.json", b"{}")
    fake_gcs.put(gcs_bucket, "models/other", b"x")
    environment = fake_gcs.environment
    with open_mount(
        f"gs://{gcs_bucket}/models", "--set", "tree.ttl_s=0", environment=environment
    ) as mounted:
        assert sorted(path.name for path in mounted.path.iterdir()) == ["llama", "other"]
        folder = mounted.path / "llama"
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config é.json"}
        assert (folder / "model.safetensors").read_bytes() == data
        assert (folder / "config é.json").read_bytes() == b"{}"
        with (folder / "config é.json").open("rb") as pinned:
            fake_gcs.put(gcs_bucket, "models/llama/config é.json", b'{"a": 1}')
            assert pinned.read() == b"{}"
        assert (folder / "config é.json").read_bytes() == b'{"a": 1}'
        with pytest.raises(FileNotFoundError):
            (folder / "missing").stat()


def test_an_open_file_whose_object_goes(fake_gcs: FakeGcs, gcs_bucket: str) -> None:
    """Of a deleted object not yet read no byte is made up: the read fails with ESTALE."""
    fake_gcs.put(gcs_bucket, "model.safetensors", bytes(SIZE))
    with (
        open_mount(
            f"gs://{gcs_bucket}", environment=fake_gcs.environment, warnings_expected=True
        ) as mounted,
        (mounted.path / "model.safetensors").open("rb", buffering=0) as pinned,
    ):
        fake_gcs.delete(gcs_bucket, "model.safetensors")
        with pytest.raises(OSError, match="Stale") as raised:
            pinned.read(10)
        assert raised.value.errno == errno.ESTALE


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "does not exist"),
        ({"STORAGE_EMULATOR_HOST": ""}, "no usable Google credentials"),
        ({"STORAGE_EMULATOR_HOST": "localhost:1"}, "STORAGE_EMULATOR_HOST"),
    ],
    ids=["no bucket", "no credentials", "no URL"],
)
def test_what_cannot_be_mounted(environment: dict[str, str], says: str, fake_gcs: FakeGcs) -> None:
    """A mount that cannot work fails at once, with one sentence."""
    nobody = {"NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": "/nowhere", "HOME": "/nowhere"}
    around = {**fake_gcs.environment, **nobody, **environment}
    with (
        pytest.raises(MountFailed) as raised,
        open_mount("gs://no-such-bucket", environment=around),
    ):
        pytest.fail("it was mounted")
    assert says in raised.value.stderr
    assert len(raised.value.stderr.strip().splitlines()) == 1
