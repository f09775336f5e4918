"""What a volume may say, as text in and values or a sentence out: no process, no mount."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusefs.errors import ConfigError
from fusefs.kubernetes.attributes import POD_UID, PodVolume, Rules, parse_volume, tokens_in
from fusefs.kubernetes.credentials import (
    GOOGLE_FILE,
    TOKEN_FILE,
    Unauthenticated,
    credentials_of,
)
from fusefs.kubernetes.records import Record
from fusefs.kubernetes.surroundings import environment_for
from tests.kubernetes.attributes_page import PAGE, attributes_page

POD = {
    "csi.storage.k8s.io/pod.namespace": "models",
    "csi.storage.k8s.io/serviceAccount.name": "server",
}
TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"


def _tokens(**by_audience: str) -> str:
    return json.dumps({audience: {"token": token} for audience, token in by_audience.items()})


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({}, "source"),
        ({"source": ""}, "source"),
        ({"source": "bucket"}, "scheme"),
        ({"source": "ftp://bucket"}, "ftp"),
        ({"source": "s3://key:secret@bucket"}, "credentials"),
        ({"source": "s3://b", "sauce": "x"}, "did you mean source?"),
        ({"source": "s3://b", "engine.memroy": "1G"}, "did you mean engine.memory?"),
        ({"source": "s3://b", "engine.memory": "lots"}, "engine.memory"),
        ({"source": "s3://b", "engine.range_size": "1536K"}, "multiple"),
        ({"source": "s3://b", "log.file": "/etc/passwd"}, "driver's"),
        ({"source": "s3://b", "mount.allow_other": "false"}, "allow_other"),
        ({"source": "s3://b", "s3.profile": "admin"}, "profile"),
        ({"source": "s3://b", "authentication": "magic"}, "one of"),
        ({"source": "s3://b", "roleArn": "a\nb"}, "one line"),
        ({"source": "file:///etc"}, "--file-root"),
    ],
)
def test_a_wrong_attribute_is_one_sentence(context: dict[str, str], sentence: str) -> None:
    """Whatever is wrong is named, with what to do, before anything is mounted."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_volume(context, has_secret=False)
    assert "secret" not in str(caught.value) or "secret@" not in str(caught.value)


@pytest.mark.parametrize("flag", ["fast", "engine.memory", "log.level=debug"])
def test_a_wrong_mount_option_is_refused(flag: str) -> None:
    """Options of a mount know the settings of a volume, and no more."""
    with pytest.raises(ConfigError, match=flag.partition("=")[0]):
        parse_volume({"source": "s3://b"}, False, [flag])


def test_settings_come_from_attributes_and_mount_options() -> None:
    """Both are the settings of the one table; the group is the mount's."""
    context = {"source": "s3://b/p", "engine.memory": "512M", "s3.region": "eu-1"}
    volume = parse_volume(context, True, ["ro", "tree.ttl_s=5"], group="1234")
    assert volume.source.text == "s3://b/p/"
    assert volume.config.engine.memory == 512 << 20
    assert volume.config.tree.ttl_s == 5
    assert volume.config.s3.region == "eu-1"
    assert volume.config.mount.gid == 1234
    assert volume.config.mount.allow_other is True


@pytest.mark.parametrize(
    ("context", "has_secret", "rules", "expected"),
    [
        ({}, True, Rules(), "secret"),
        ({"roleArn": "arn:aws:iam::1:role/x"}, False, Rules(), "serviceAccount"),
        ({"s3.anonymous": "true"}, False, Rules(), "anonymous"),
        ({}, False, Rules(allow_driver_identity=True), "driver"),
        ({}, False, Rules(), ""),
        ({"authentication": "anonymous"}, True, Rules(), "anonymous"),
    ],
)
def test_whose_credentials_are_used(
    context: dict[str, str], has_secret: bool, rules: Rules, expected: str
) -> None:
    """A volume's own credentials come first; the driver's only where it is allowed."""
    volume = parse_volume({"source": "s3://b", **context}, has_secret, rules=rules)
    assert volume.authentication == expected
    assert volume.config.s3.anonymous is (expected == "anonymous")


def test_a_volume_with_the_drivers_identity_names_no_server() -> None:
    """The driver's own tokens are not sent to a server that a pod chose."""
    context = {"source": "gs://b", "gcs.endpoint_url": "https://evil.example"}
    with pytest.raises(ConfigError, match=r"gcs\.endpoint_url"):
        parse_volume(context, False, rules=Rules(allow_driver_identity=True))


def test_the_drivers_identity_must_be_allowed_when_it_is_named() -> None:
    """`authentication: driver` is refused where the administrator did not allow it."""
    with pytest.raises(ConfigError, match="--allow-driver-identity"):
        parse_volume({"source": "s3://b", "authentication": "driver"}, False)


def test_file_sources_stay_below_their_root() -> None:
    """A file source is allowed below the folder that the administrator named."""
    rules = Rules(file_root="/mnt/models")
    assert parse_volume({"source": "file:///mnt/models/a"}, False, rules=rules).source.bucket
    with pytest.raises(ConfigError, match="/mnt/models"):
        parse_volume({"source": "file:///mnt/modelsandmore"}, False, rules=rules)


def test_a_volume_without_credentials_is_unauthenticated() -> None:
    """No silent fall-back: who is nobody is told what to set."""
    volume = parse_volume({"source": "s3://b"}, False)
    with pytest.raises(Unauthenticated, match="nodePublishSecretRef"):
        credentials_of(volume, {}, {})


def test_a_secret_becomes_variables_and_shows_nowhere() -> None:
    """Its keys are the SDK's variables; no repr or fingerprint holds a value."""
    secrets = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "hush"}
    volume = parse_volume({"source": "s3://b"}, True)
    made = credentials_of(volume, POD, secrets)
    assert dict(made.environment) == secrets
    assert "hush" not in repr(made)
    assert made.fingerprint
    other = credentials_of(volume, POD, {**secrets, "AWS_SECRET_ACCESS_KEY": "other"})
    assert other.fingerprint != made.fingerprint
    assert other.subject == made.subject


@pytest.mark.parametrize(
    ("secrets", "sentence"),
    [({"password": "hush"}, "AWS_ACCESS_KEY_ID"), ({"REDISCLI_AUTH": "hush"}, "s3://")],
)
def test_an_unknown_key_of_a_secret_is_named_without_its_value(
    secrets: dict[str, str], sentence: str
) -> None:
    """A misspelt key is an error by name, which says what there is."""
    volume = parse_volume({"source": "s3://b"}, True)
    with pytest.raises(ConfigError, match=sentence) as caught:
        credentials_of(volume, POD, secrets)
    assert "hush" not in str(caught.value)


def test_a_role_at_aws_gets_a_token_file() -> None:
    """The role and the token's file are what the SDK's own chain looks for."""
    context = {"source": "s3://b", "roleArn": "arn:aws:iam::1:role/x", **POD}
    context[TOKENS] = _tokens(**{"sts.amazonaws.com": "jwt"})
    made = credentials_of(parse_volume(context, False), context, {})
    assert made.environment["AWS_ROLE_ARN"] == "arn:aws:iam::1:role/x"
    assert made.file_variables == {"AWS_WEB_IDENTITY_TOKEN_FILE": TOKEN_FILE}
    assert made.files[TOKEN_FILE] == "jwt"
    assert "jwt" not in made.subject


@pytest.mark.parametrize(
    ("audience", "token_audience"),
    [
        ("identitynamespace:p.svc.id.goog:https://container/x", "p.svc.id.goog"),
        ("//iam.googleapis.com/projects/1/x", "https://iam.googleapis.com/projects/1/x"),
    ],
)
def test_google_gets_an_external_account(audience: str, token_audience: str) -> None:
    """The file that google-auth reads names the audience, the token's file and the account."""
    context = {
        "source": "gs://b",
        "googleAudience": audience,
        "googleServiceAccount": "reader@p.iam.gserviceaccount.com",
        **POD,
    }
    made = credentials_of(
        parse_volume(context, False), context, {TOKENS: _tokens(**{token_audience: "jwt"})}
    )
    account = json.loads(made.files[GOOGLE_FILE])
    assert account["audience"] == audience
    assert account["type"] == "external_account"
    assert "reader@p" in account["service_account_impersonation_url"]
    assert made.file_variables == {"GOOGLE_APPLICATION_CREDENTIALS": GOOGLE_FILE}
    assert made.files[TOKEN_FILE] == "jwt"


def test_azure_gets_a_workload_identity() -> None:
    """The variables are those of azure-identity's WorkloadIdentityCredential."""
    context = {
        "source": "az://container", "azure.account": "acct", "azureClientId": "client",
        "azureTenantId": "tenant", **POD,
    }  # fmt: skip
    context[TOKENS] = _tokens(**{"api://AzureADTokenExchange": "jwt"})
    made = credentials_of(parse_volume(context, False), context, {})
    assert made.environment["AZURE_CLIENT_ID"] == "client"
    assert made.environment["AZURE_TENANT_ID"] == "tenant"
    assert made.file_variables == {"AZURE_FEDERATED_TOKEN_FILE": TOKEN_FILE}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({TOKENS: None}, "tokenRequests"),
        ({"csi.storage.k8s.io/pod.namespace": None}, "podInfoOnMount"),
        ({"authentication": "serviceAccount", "roleArn": None}, "roleArn"),
    ],
)
def test_a_missing_part_of_an_identity_is_named(
    change: dict[str, str | None], sentence: str
) -> None:
    """Without token, pod or role it is said which object needs which field."""
    whole: dict[str, Any] = {"source": "s3://b", "roleArn": "arn:aws:iam::1:role/x", **POD}
    whole |= {TOKENS: _tokens(**{"sts.amazonaws.com": "jwt"})} | change
    context = {name: text for name, text in whole.items() if text is not None}
    with pytest.raises((Unauthenticated, ConfigError), match=sentence):
        credentials_of(parse_volume(context, False), context, {})


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {"tok": "hush"}}'])
def test_tokens_that_make_no_sense_are_not_repeated(text: str) -> None:
    """A message never holds a piece of a token."""
    with pytest.raises(ConfigError) as caught:
        tokens_in({TOKENS: text}, {})
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_daemon_sees_no_identity_but_its_own(tmp_path: Path) -> None:
    """The mounter's credentials and the node's metadata server are out of sight."""
    (tmp_path / "environment.json").write_text('{"AWS_ACCESS_KEY_ID": "AKIA"}')
    own = {
        "AWS_ACCESS_KEY_ID": "driver", "AWS_ROLE_ARN": "arn", "AZURE_CLIENT_ID": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "/x", "REDISCLI_AUTH": "x", "PATH": "/bin",
        "AWS_ENDPOINT_URL": "http://s3",
    }  # fmt: skip
    record = Record("k", "s3://b/", {}, "secret", "", inherit=False)
    seen = environment_for(record, tmp_path, own)
    assert seen["AWS_ACCESS_KEY_ID"] == "AKIA"
    assert seen["AWS_EC2_METADATA_DISABLED"] == "true"
    assert seen["AWS_ENDPOINT_URL"] == "http://s3"
    assert not {"AWS_ROLE_ARN", "AZURE_CLIENT_ID", "REDISCLI_AUTH"} & seen.keys()
    drivers = Record("k", "s3://b/", {}, "driver", "", inherit=True)
    assert environment_for(drivers, tmp_path, own)["AWS_ROLE_ARN"] == "arn"


def test_the_page_of_attributes_is_of_the_table() -> None:
    """docs/kubernetes/attributes.md says what the plugin accepts and answers."""
    assert PAGE.read_text("utf-8") == attributes_page(), (
        "write it again with: python -m tests.kubernetes.attributes_page"
    )


def test_a_sidecars_volume_is_the_pods_own_matter() -> None:
    """No credentials of the plugin's, any folder, and none of the mounter's defaults for memory."""
    pod = {**POD, POD_UID: "0b7b4a52-1f7e"}
    rules = Rules(defaults={"engine.memory": 1 << 30, "s3.region": "eu-west-1"})
    context = {"source": "file:///claims/models", "mode": "sidecar", **pod}
    volume = parse_volume(context, False, rules=rules)
    assert volume.meeting == PodVolume("0b7b4a52-1f7e", "fusefs")
    assert volume.config.engine.memory is None
    assert volume.config.s3.region == "eu-west-1"
    made = credentials_of(volume, context, {})
    assert (made.subject, made.inherit, made.environment, made.files) == ("sidecar", True, {}, {})
    named = parse_volume({**context, "sidecarVolume": "other", "engine.memory": "1G"}, False)
    assert named.meeting == PodVolume("0b7b4a52-1f7e", "other")
    assert named.config.engine.memory == 1 << 30
    anonymous = {**context, "source": "s3://public", "authentication": "anonymous"}
    assert parse_volume(anonymous, False).config.s3.anonymous
    with pytest.raises(ConfigError, match="leave out authentication and nodePublishSecretRef"):
        parse_volume(context, True)
