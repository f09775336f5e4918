"""Who the S3 store says it is, and what happens when that changes while the mount is there."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fusefs.config import S3Config
from fusefs.errors import (
    AccessDenied,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.objects import Extent
from fusefs.store.s3 import S3Store
from fusefs.store.s3_write import PART_BYTES, S3Writer
from tests.harness.moto import Moto, allow
from tests.store_contract.wire import (
    DATA,
    EXTENT,
    ID,
    SIZE,
    Answer,
    WireServer,
    answer,
    empty_listing,
    error,
    good,
)


def keys_of(server: WireServer) -> list[str]:
    """The access key of each request, "" where there was none."""
    found = [re.search(r"Credential=([^/]+)/", head) for head in server.requests]
    return [match[1] if match else "" for match in found]


def write_credentials(path: Path, key: str) -> None:
    """Write a shared credentials file."""
    path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=hunter2\n")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_a_credentials_file_that_was_written_anew(
    code: str,
    endpoint: WireServer,
    stores: list[S3Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Credentials that somebody wrote into the file are found when the old are refused."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    write_credentials(file, "AKIAOLD")
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    endpoint.answers += [empty_listing(), error("400 Bad Request", code), good()]
    store.check("")
    write_credentials(file, "AKIANEW")
    buffer = bytearray(SIZE)
    store.read_into(ID, EXTENT, memoryview(buffer))
    assert buffer == DATA
    assert keys_of(endpoint) == ["AKIAOLD", "AKIAOLD", "AKIANEW"]


def test_credentials_that_stay_expired(
    endpoint: WireServer, stores: list[S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there are no others, the request is not repeated, and the sentence says what to do."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    write_credentials(file, "AKIAOLD")
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    expired = error("400 Bad Request", "ExpiredToken")
    # Of a HEAD, the SDK asks about the region as well, with a HEAD of the bucket.
    endpoint.answers += [
        expired,
        expired,
        *[answer("400 Bad Request", {"Content-Length": "0"})] * 2,
    ]
    for _ in range(2):
        with pytest.raises(AccessDenied, match="expired: renew the credentials"):
            store.check("")
    # Looked for once, not for each request that fails.
    write_credentials(file, "AKIANEW")
    with pytest.raises(AccessDenied, match="credentials have expired"):
        store.head("object")
    assert keys_of(endpoint) == ["AKIAOLD"] * 4


def process_of(tmp_path: Path, lifetime_s: float) -> str:
    """A profile whose credentials a program gives, another key at each call."""
    calls = tmp_path / "calls"
    calls.write_text("")
    program = tmp_path / "program.py"
    expires = (datetime.now(UTC) + timedelta(seconds=lifetime_s)).isoformat()
    program.write_text(
        "import json, pathlib\n"
        f"calls = pathlib.Path({str(calls)!r})\n"
        "calls.write_text(calls.read_text() + 'x')\n"
        "print(json.dumps({'Version': 1, 'SecretAccessKey': 'hunter2', 'SessionToken': 'hunter2',\n"
        "    'AccessKeyId': f'ASIA{len(calls.read_text())}',\n"
        f"    'Expiration': {expires!r}}}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    return str(config)


def test_a_process_is_asked_again_before_its_credentials_expire(
    endpoint: WireServer, stores: list[S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials with a date are renewed without a remount, before anybody refuses them."""
    monkeypatch.setenv("AWS_CONFIG_FILE", process_of(tmp_path, lifetime_s=300))
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    endpoint.answers += [empty_listing(), empty_listing()]
    store.check("")
    store.check("")
    first, second = keys_of(endpoint)
    # Five minutes are few to the SDK: it asks again at each request.
    assert int(second.removeprefix("ASIA")) > int(first.removeprefix("ASIA"))


def test_a_process_that_gives_expired_credentials(
    endpoint: WireServer, stores: list[S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed credentials that have expired, too, are one sentence, and nobody is asked."""
    monkeypatch.setenv("AWS_CONFIG_FILE", process_of(tmp_path, lifetime_s=-60))
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    with pytest.raises(AccessDenied, match="role, the process or the login"):
        store.check("")
    assert endpoint.requests == []


def test_a_pod_identity(
    endpoint: WireServer, stores: list[S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent of EKS on the node gives credentials for the pod's token, and is asked again."""
    token = tmp_path / "token"
    monkeypatch.setenv(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{endpoint.port}/v1/credentials"
    )
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    for number, expires in ((1, timedelta(minutes=5)), (2, timedelta(hours=6))):
        given = {"AccessKeyId": f"ASIA{number}", "SecretAccessKey": "hunter2", "Token": "hunter2"}
        given["Expiration"] = (datetime.now(UTC) + expires).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = json.dumps(given).encode()
        endpoint.answers.append(answer("200 OK", {"Content-Length": str(len(body))}, body))
        if number == 1:
            continue
        endpoint.answers.append(empty_listing())
    token.write_text("pod-token")
    store.check("")
    agent, again, listing = endpoint.requests
    assert agent.startswith("GET /v1/credentials ")
    assert "Authorization: pod-token" in agent
    assert again.startswith("GET /v1/credentials ")
    assert "Credential=ASIA2/" in listing


def web_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    """The environment that Kubernetes gives a pod with a role for its service account."""
    token = tmp_path / "token"
    token.write_text("hunter2")
    monkeypatch.setenv("AWS_ROLE_ARN", role)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))


def test_a_web_identity(
    moto_environment: Moto,
    versioned_bucket: str,
    stores: list[S3Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A role that a service account's token stands for reads the bucket, with a session token."""
    iam = moto_environment.client("iam")
    trust = allow("sts:AssumeRoleWithWebIdentity", "*")
    role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
    policy = json.dumps(allow(["s3:GetObject", "s3:ListBucket"], "*"))
    iam.put_role_policy(RoleName="reader", PolicyName="it", PolicyDocument=policy)
    iam.close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    web_identity(tmp_path, monkeypatch, role["Arn"])
    moto_environment.excuse_next()
    store = S3Store(versioned_bucket, S3Config(), 1)
    stores.append(store)
    store.check("")
    frozen = store._client._credentials.get_frozen_credentials()
    assert frozen.access_key.startswith("ASIA")
    assert frozen.token


ROLE_REFUSED: dict[str, tuple[Answer, type[FusefsError], str]] = {
    "expired": (error("400 Bad Request", "ExpiredTokenException"), AccessDenied, "AWS_ROLE_ARN"),
    "no trust": (error("403 Forbidden", "AccessDenied"), AccessDenied, "trust policy"),
    "busy": (error("503 Service Unavailable", "Unavailable"), StoreUnavailable, "must wait"),
}


@pytest.mark.parametrize("name", ROLE_REFUSED)
def test_a_role_that_is_not_given(
    name: str,
    endpoint: WireServer,
    stores: list[S3Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal by STS is told as one of the role, not of the bucket."""
    refusal, expected, says = ROLE_REFUSED[name]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    web_identity(tmp_path, monkeypatch, "arn:aws:iam::123456789012:role/reader")
    endpoint.answers.append(refusal)
    store = S3Store("bucket", S3Config(), 1)
    stores.append(store)
    with pytest.raises(FusefsError, match=says) as raised:
        store.check("")
    assert type(raised.value) is expected
    assert "hunter2" not in str(raised.value)


def test_a_bucket_that_vanishes(
    moto_environment: Moto, versioned_bucket: str, stores: list[S3Store]
) -> None:
    """A bucket that is deleted under a mount has no names any more, and its versions are gone."""
    client: Any = moto_environment.client()
    client.put_object(Bucket=versioned_bucket, Key="object", Body=b"data")
    store = S3Store(versioned_bucket, S3Config(), 1)
    stores.append(store)
    meta = store.head("object")
    versions = client.list_object_versions(Bucket=versioned_bucket)["Versions"]
    for version in versions:
        client.delete_object(Bucket=versioned_bucket, Key="object", VersionId=version["VersionId"])
    client.delete_bucket(Bucket=versioned_bucket)
    client.close()
    with pytest.raises(ObjectNotFound, match="no such bucket"):
        store.list_page("", None)
    with pytest.raises(ObjectNotFound):
        store.head("object")
    with pytest.raises(ObjectChanged, match="no such bucket"):
        store.read_into(meta.id, Extent(0, 4), memoryview(bytearray(4)))


def test_an_old_version_is_not_served(
    moto_environment: Moto, versioned_bucket: str, stores: list[S3Store]
) -> None:
    """Where the bucket still has the old version, its readers are told all the same."""
    client: Any = moto_environment.client()
    client.put_object(Bucket=versioned_bucket, Key="object", Body=b"old!")
    store = S3Store(versioned_bucket, S3Config(), 1)
    stores.append(store)
    old = store.head("object")
    client.put_object(Bucket=versioned_bucket, Key="object", Body=b"new!")
    kept = client.list_object_versions(Bucket=versioned_bucket)["Versions"]
    client.close()
    assert len(kept) == 2
    with pytest.raises(ObjectChanged):
        store.read_into(old.id, Extent(0, 4), memoryview(bytearray(4)))
    memory = bytearray(4)
    store.read_into(store.head("object").id, Extent(0, 4), memoryview(memory))
    assert memory == b"new!"


def documented_policies(bucket: str, repository: Path) -> list[dict[str, Any]]:
    """The policies of docs/stores/s3.md, for `bucket`: what a mount needs, and what a push does."""
    text = (repository / "docs/stores/s3.md").read_text("utf-8").replace("my-models", bucket)
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def test_the_documented_policies(
    moto_environment: Moto,
    versioned_bucket: str,
    repository: Path,
    stores: list[S3Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has the documented policies may read, or push as well, below the prefix and no more."""
    size = PART_BYTES + 1
    for may_push, policy in zip(
        (False, True), documented_policies(versioned_bucket, repository), strict=True
    ):
        user = moto_environment.make_user(f"{versioned_bucket}-{may_push}", policy)
        for name, value in user.items():
            monkeypatch.setenv(name, value)
        owner: Any = moto_environment.client()
        for key in ("llama/object", "other/object"):
            owner.put_object(Bucket=versioned_bucket, Key=key, Body=b"data")
        owner.close()
        store = S3Store(versioned_bucket, S3Config(), 1)
        stores.append(store)
        store.check("llama/")
        meta = store.list_page("llama/", None).objects[0]
        store.read_into(meta.id, Extent(0, 4), memoryview(bytearray(4)))
        with pytest.raises(AccessDenied):
            store.head("other/object")
        writer = S3Writer(versioned_bucket, S3Config(), 1)
        if may_push:
            upload = writer.begin("llama/large", size)
            data = memoryview(bytes(size))
            for index, start in enumerate(range(0, size, upload.part_bytes)):
                upload.put_part(index, data[start : start + upload.part_bytes])
            assert upload.commit().size == size
            assert writer.discard("llama/") == 0
            writer.delete("llama/large")
        for key in ("other/object",) if may_push else ("llama/object", "other/object"):
            with pytest.raises(AccessDenied):
                writer.put(key, b"x")
        writer.close()
