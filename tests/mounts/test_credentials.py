"""A mount outlives its credentials, and says so clearly when its bucket goes."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.moto import Moto, allow
from tests.harness.mounted import MountFailed, open_mount

DATA = random.Random(3).randbytes(3 << 20)


@pytest.fixture
def bucket_of(moto: Moto) -> Iterator[tuple[str, Any]]:
    """A bucket with two objects, and its owner's client."""
    client = moto.client()
    bucket = f"mounted-{random.SystemRandom().randrange(1 << 60):x}"
    client.create_bucket(Bucket=bucket)
    for key in ("one", "dir/two"):
        client.put_object(Bucket=bucket, Key=key, Body=DATA)
    yield bucket, client
    client.close()


def write_credentials(path: Path, keys: dict[str, str]) -> None:
    """Write a shared credentials file, as a login tool does."""
    lines = [f"{name.lower()} = {value}" for name, value in keys.items()]
    path.write_text("\n".join(["[default]", *lines, ""]))


def environment(moto: Moto, credentials: Path) -> dict[str, str]:
    """The environment of a mount whose keys are in a file."""
    made = {name: value for name, value in moto.environment.items() if "KEY" not in name}
    return made | {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)}


def test_new_keys_need_no_remount(moto: Moto, bucket_of: tuple[str, Any], tmp_path: Path) -> None:
    """Keys that are revoked and replaced in the credentials file are not noticed by a reader."""
    bucket, _ = bucket_of
    policy = allow(["s3:GetObject", "s3:ListBucket"], "*")
    first, second = (moto.make_user(f"{bucket}-{n}", policy) for n in ("first", "second"))
    file = tmp_path / "credentials"
    write_credentials(file, first)
    with open_mount(f"s3://{bucket}", environment=environment(moto, file)) as mounted:
        assert (mounted.path / "one").read_bytes() == DATA
        iam = moto.client("iam")
        iam.delete_access_key(UserName=f"{bucket}-first", AccessKeyId=first["AWS_ACCESS_KEY_ID"])
        iam.close()
        write_credentials(file, second)
        assert (mounted.path / "dir/two").read_bytes() == DATA


def test_wrong_keys_are_told_at_once(
    moto: Moto, bucket_of: tuple[str, Any], tmp_path: Path
) -> None:
    """A mount with keys that the store does not know fails with a sentence that names them."""
    bucket, _ = bucket_of
    file = tmp_path / "credentials"
    wrong = {"AWS_ACCESS_KEY_ID": "AKIANOBODYNOBODY", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    write_credentials(file, wrong)
    with (
        pytest.raises(MountFailed) as raised,
        open_mount(f"s3://{bucket}", environment=environment(moto, file)),
    ):
        pass
    assert "does not know this access key: check the credentials" in raised.value.stderr
    assert "hunter2" not in raised.value.stderr


def test_a_bucket_that_vanishes(moto: Moto, bucket_of: tuple[str, Any]) -> None:
    """Under a mount whose bucket is deleted, what was not read yet is an error, not a hang."""
    bucket, client = bucket_of
    with open_mount(
        f"s3://{bucket}", environment=moto.environment, warnings_expected=True
    ) as mounted:
        with (mounted.path / "dir/two").open("rb", buffering=0) as file:
            for key in ("one", "dir/two"):
                client.delete_object(Bucket=bucket, Key=key)
            client.delete_bucket(Bucket=bucket)
            with pytest.raises(OSError, match=r".") as stale:
                file.read(100)
            assert stale.value.errno == errno.ESTALE
        with pytest.raises(FileNotFoundError):
            (mounted.path / "never/listed").read_bytes()
