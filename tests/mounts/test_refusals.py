"""A store that refuses: one sentence when mounting, an errno that fits afterwards, no remount.

The servers are real; what they refuse while a mount is up is refused by the proxy in front of them,
in the store's own words.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.harness.mounted import Mounted, MountFailed, open_mount
from tests.harness.proxy import open_recording_proxy
from tests.harness.weed import Weed, choose_ports

MIB = 1 << 20
OBJECT_BYTES = 4 * MIB
SECRET = "not-the-secret-hunter2"


def refused(source: str, environment: dict[str, str]) -> MountFailed:
    """The failure of `fusefs mount`: one line, no secret, nothing left."""
    with (
        pytest.raises(MountFailed) as caught,
        open_mount(source, environment=environment),
    ):
        pytest.fail("mounted")
    failure = caught.value
    assert failure.stderr.count("\n") == 1, failure.stderr
    assert SECRET not in failure.stderr
    return failure


@pytest.mark.parametrize(
    ("changed", "typed", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "", "the secret key does not fit the access key"),
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "", "does not know this access key"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "", "set AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "nobody"}, "", "there is no AWS profile 'nobody'"),
        ({}, "no-such-bucket", "there is no such bucket"),
        ({}, "{bucket}/no/such/prefix", "holds no object below 'no/such/prefix/'"),
    ],
    ids=["secret", "key", "none", "profile", "bucket", "prefix"],
)
def test_mount_says_what_s3_refuses(
    weed: Weed, bucket: str, changed: dict[str, str], typed: str, says: str
) -> None:
    """Each mistake has its own sentence, and nothing is mounted."""
    source = f"s3://{typed.format(bucket=bucket) or bucket}"
    failure = refused(source, {**weed.environment, **changed})
    assert failure.status == 1
    assert says in failure.stderr


def test_mount_says_that_nobody_answers(weed: Weed, bucket: str) -> None:
    """A server that is not there is named."""
    (port,) = choose_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    failure = refused(f"s3://{bucket}", {**weed.environment, "AWS_ENDPOINT_URL": endpoint})
    assert endpoint in failure.stderr
    assert "Connection refused" in failure.stderr


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("RequestTimeTooSkewed", "the clock of this machine is wrong: set it"),
        ("PermanentRedirect", "is in another region: set s3.region"),
        ("ExpiredToken", "the session token has expired: renew the credentials"),
    ],
)
def test_mount_says_what_amazon_would_refuse(
    weed: Weed, bucket: str, tmp_path: Path, code: str, says: str
) -> None:
    """What this server never says is said in its place."""
    with open_recording_proxy(weed.endpoint, tmp_path) as proxy:
        proxy.refuse(code)
        environment = {**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        assert says in refused(f"s3://{bucket}", environment).stderr


def read(mounted: Mounted, name: str) -> bytes:
    """A file as an application reads it that opens it anew."""
    return (mounted.path / name).read_bytes()


def test_expired_credentials_are_eacces_until_they_are_renewed(
    weed: Weed, bucket: str, tmp_path: Path
) -> None:
    """Reads fail at once and with EACCES, the log says why, and afterwards the mount goes on."""
    want = os.urandom(OBJECT_BYTES)
    for name in ("one.bin", "two.bin"):
        weed.client().put_object(Bucket=bucket, Key=name, Body=want)
    with open_recording_proxy(weed.endpoint, tmp_path) as proxy:
        environment = {**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        with open_mount(
            f"s3://{bucket}", environment=environment, warnings_expected=True
        ) as mounted:
            assert read(mounted, "one.bin") == want
            proxy.refuse("ExpiredToken")
            with pytest.raises(PermissionError) as caught:
                read(mounted, "two.bin")
            assert caught.value.errno == errno.EACCES
            warnings = mounted.status()["warnings"]
            assert any("the session token has expired" in text for text in warnings), warnings
            assert read(mounted, "one.bin") == want  # what is here needs no credentials
            proxy.serve()
            assert read(mounted, "two.bin") == want
