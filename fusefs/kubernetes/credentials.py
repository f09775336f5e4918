"""A volume's credentials: from secrets and tokens to an environment and files for its daemon.

The one idea: SDKs find credentials in variables and files of their own, so these are made and
nothing is taught to the stores. Values here are secrets: no repr, message or log shows one, and
they are written only to files of mode 0600 in the key's folder (`fusefs.kubernetes.records`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusefs.errors import ConfigError, FusefsError
from fusefs.kubernetes.attributes import (
    DRIVER,
    SECRET,
    SERVICE_ACCOUNT,
    SIDECAR,
    TOKENS,
    Volume,
    tokens_in,
)

POD_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
SERVICE_ACCOUNT_NAME = "csi.storage.k8s.io/serviceAccount.name"

AWS_AUDIENCE = "sts.amazonaws.com"
AZURE_AUDIENCE = "api://AzureADTokenExchange"
_GOOGLE_NAMESPACE = "identitynamespace:"

TOKEN_FILE = "token"  # noqa: S105 - a file's name
GOOGLE_FILE = "google.json"

SECRET_KEYS: dict[str, str] = {
    "AWS_ACCESS_KEY_ID": "s3",
    "AWS_SECRET_ACCESS_KEY": "s3",
    "AWS_SESSION_TOKEN": "s3",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": "gs",
    "AZURE_STORAGE_KEY": "az",
    "AZURE_STORAGE_SAS_TOKEN": "az",
    "AZURE_STORAGE_CONNECTION_STRING": "az",
    "AZURE_CLIENT_ID": "az",
    "AZURE_TENANT_ID": "az",
    "AZURE_CLIENT_SECRET": "az",
    "REDISCLI_AUTH": "redis",
}
"""The keys that a volume's secret may have, each with the kind of source it is for: the names of
the environment variables, but for Google's, which is the content of the file that its names."""

_GOOGLE_JSON = "GOOGLE_APPLICATION_CREDENTIALS_JSON"


class Unauthenticated(FusefsError):
    """A volume came without the credentials it needs."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a daemon gets, and whose it is.

    `environment` are variables, `files` contents by name, `file_variables` variables that name one
    of the files. `inherit` is whether the mounter's own identity is used besides. `subject` is who
    it is, as far as it stays the same when credentials are renewed; `fingerprint` says which
    credentials these are (a hash).
    """

    subject: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    file_variables: Mapping[str, str] = field(default_factory=dict)
    inherit: bool = False
    fingerprint: str = ""


def credentials_of(
    volume: Volume, context: Mapping[str, str], secrets: Mapping[str, str]
) -> Credentials:
    """The credentials of one publish. Raises Unauthenticated or ConfigError, naming no value."""
    if not volume.authentication:
        raise Unauthenticated(
            "the volume has no credentials: reference a secret with nodePublishSecretRef, name the"
            " cloud's role for the pod's service account, or set authentication: anonymous"
        )
    if volume.meeting is not None:
        return Credentials(SIDECAR, inherit=True)
    if volume.authentication == SECRET:
        return _of_secret(volume, context, secrets)
    if volume.authentication == SERVICE_ACCOUNT:
        return _of_service_account(volume, context, tokens_in(context, secrets))
    return Credentials(volume.authentication, inherit=volume.authentication == DRIVER)


def given_secrets(secrets: Mapping[str, str]) -> dict[str, str]:
    """What somebody wrote into the secret, without what kubelet adds."""
    return {name: value for name, value in secrets.items() if name != TOKENS}


def _of_secret(
    volume: Volume, context: Mapping[str, str], secrets: Mapping[str, str]
) -> Credentials:
    given = given_secrets(secrets)
    if not given:
        raise Unauthenticated(
            "authentication is secret, but no secret came along: set nodePublishSecretRef of the"
            " volume, and look whether the secret is empty"
        )
    scheme = volume.source.scheme.replace("rediss", "redis")
    fitting = sorted(name for name, kind in SECRET_KEYS.items() if kind == scheme)
    for name in given:
        if SECRET_KEYS.get(name) != scheme:
            wanted = f"it may have {', '.join(fitting)}" if fitting else "this source needs none"
            raise ConfigError(
                f"the secret's key {name[:80]!r} is unknown for {scheme}:// sources; {wanted}"
            )
        if "\0" in given[name]:
            raise ConfigError(f"the secret's value of {name} holds a zero byte")
    files, variables = {}, {}
    environment = dict(given)
    if _GOOGLE_JSON in environment:
        files[GOOGLE_FILE] = environment.pop(_GOOGLE_JSON)
        variables["GOOGLE_APPLICATION_CREDENTIALS"] = GOOGLE_FILE
    # Only pods of one namespace share a mount: those of another could be given other secrets.
    subject = f"secret of namespace {context.get(POD_NAMESPACE, '')}"
    return Credentials(subject, environment, files, variables, False, _hash(given))


def _of_service_account(
    volume: Volume, context: Mapping[str, str], tokens: Mapping[str, str]
) -> Credentials:
    own = volume.attributes
    namespace, name = context.get(POD_NAMESPACE), context.get(SERVICE_ACCOUNT_NAME)
    if not namespace or not name:
        raise Unauthenticated(
            "kubelet did not say whose pod this is: the CSIDriver object needs podInfoOnMount: true"
        )
    make = {"s3": _aws, "gs": _google, "az": _azure}.get(volume.source.scheme)
    if make is None:
        raise ConfigError(
            f"{volume.source.scheme}:// sources know no service accounts: use a secret"
        )
    audience, environment, files, variables = make(own)
    if audience not in tokens:
        raise Unauthenticated(
            f"kubelet sent no token for the audience {audience}: name it in tokenRequests of the"
            " CSIDriver object"
        )
    subject = json.dumps([namespace, name, audience, environment, files], sort_keys=True)
    files = {**files, TOKEN_FILE: tokens[audience]}
    return Credentials(subject, environment, files, variables)


_Made = tuple[str, dict[str, str], dict[str, str], dict[str, str]]


def _needed(own: Mapping[str, str], name: str) -> str:
    if not own.get(name):
        raise ConfigError(f"authentication by the service account needs the attribute {name}")
    return own[name]


def _aws(own: Mapping[str, str]) -> _Made:
    """As docs.aws.amazon.com/eks has it under "IAM roles for service accounts"."""
    environment = {
        "AWS_ROLE_ARN": _needed(own, "roleArn"),
        "AWS_ROLE_SESSION_NAME": "fusefs",
    }
    return AWS_AUDIENCE, environment, {}, {"AWS_WEB_IDENTITY_TOKEN_FILE": TOKEN_FILE}


def _google(own: Mapping[str, str]) -> _Made:
    """The file that google-auth reads for `external_account` (google.auth.identity_pool).

    `credential_source.file` is filled in with the key's folder when it is written.
    """
    audience = _needed(own, "googleAudience")
    token_audience = own.get("googleTokenAudience") or (
        audience.removeprefix(_GOOGLE_NAMESPACE).partition(":")[0]
        if audience.startswith(_GOOGLE_NAMESPACE)
        else f"https:{audience}"
    )
    account = {
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": f"{FOLDER_MARK}/{TOKEN_FILE}"},
    }
    if impersonated := own.get("googleServiceAccount"):
        account["service_account_impersonation_url"] = (
            "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"
            f"{impersonated}:generateAccessToken"
        )
    files = {GOOGLE_FILE: json.dumps(account, indent=1)}
    return token_audience, {}, files, {"GOOGLE_APPLICATION_CREDENTIALS": GOOGLE_FILE}


def _azure(own: Mapping[str, str]) -> _Made:
    """The variables of azure-identity's WorkloadIdentityCredential."""
    environment = {
        "AZURE_CLIENT_ID": _needed(own, "azureClientId"),
        "AZURE_TENANT_ID": _needed(own, "azureTenantId"),
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
    }
    return AZURE_AUDIENCE, environment, {}, {"AZURE_FEDERATED_TOKEN_FILE": TOKEN_FILE}


FOLDER_MARK = "@FOLDER@"
"""Stands in a file's content for the folder that it will lie in."""


def _hash(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()
