"""What the S3 adapter's failures are called here, and what a person should do about them.

Only translates; whether and when to try again is decided elsewhere, by class. The one idea: a
message is made of our words, the store's error code, and names that the user typed. Texts of the
SDK and of the server are left out, for they may hold keys, tokens or signed URLs.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.exceptions as sdk
import urllib3.exceptions
from botocore.parsers import ResponseParserError

from fusefs.errors import (
    AccessDenied,
    ConfigError,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
    Unsupported,
)
from fusefs.store.http_errors import SENSELESS, chain, retry_after_s

SDK_ERRORS = (
    sdk.BotoCoreError,
    sdk.ClientError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    *SENSELESS,
)
"""Everything a client of botocore lets through. RecursionError: it follows a redirection to another
region by asking there, and may be redirected again, for ever. OSError is socket and ssl; ValueError
is a header that is no number, a key that is not UTF-8, or a date that is none."""

_THROTTLED = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
)

_DENIED: dict[str, str] = {
    "AccessDenied": "the policy does not let these credentials do that",
    "AllAccessDisabled": "the owner has disabled all access",
    "ExpiredToken": "the session token has expired: renew the credentials",
    "InvalidAccessKeyId": "the store does not know this access key: check the credentials",
    "InvalidToken": "the session token is not valid: renew the credentials",
    "RequestExpired": "the signature has expired: set this machine's clock",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check the credentials",
    "TokenRefreshRequired": "the session token must be renewed",
}
"""Codes of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html that mean
credentials; some come with status 400."""

_NO_CREDENTIALS = (
    "no usable AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, or"
    " give this machine a role"
)


def shown(key: str) -> str:
    """A key as messages quote it: on one line, and not its 1,024 bytes if it has them."""
    text = repr(key)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def code_of(error: sdk.ClientError) -> str:
    """The store's word for what went wrong; of a HEAD, which has no body, the status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def translate(error: Exception, what: str) -> FusefsError:
    """The `FusefsError` for anything of `SDK_ERRORS`; `what` is the subject of its sentence."""
    if isinstance(error, sdk.ClientError):
        if error.operation_name in _CREDENTIAL_OPERATIONS:
            return _no_role(error, what)
        return _answered(error.response, what)
    if isinstance(error, RecursionError):
        return FusefsError(
            f"{what} is sent on from region to region without end: check s3.endpoint_url and"
            " s3.region"
        )
    if isinstance(error, UnicodeEncodeError):
        return ObjectNotFound(f"{what} does not exist: its name is not UTF-8")
    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
        return AccessDenied(f"{what} cannot be asked for: {_NO_CREDENTIALS}")
    if isinstance(error, sdk.ProfileNotFound):
        profile = error.kwargs.get("profile")
        return AccessDenied(f"{what} cannot be used: there is no AWS profile {profile!r}")
    if isinstance(error, sdk.MetadataRetrievalError):
        return StoreUnavailable(f"{what} must wait: the metadata service gives no credentials")
    if isinstance(error, _CREDENTIAL_ERRORS):
        return AccessDenied(
            f"{what} cannot be asked for: where the credentials come from is out of order"
            f" ({type(error).__name__}): look at the role, the process or the login"
        )
    if isinstance(error, sdk.MissingDependencyException):
        return ConfigError(f"{what} needs more of the AWS SDK: pip install 'botocore[crt]'")
    if isinstance(error, _SETTING_ERRORS):
        return ConfigError(f"{what} cannot be asked for: {type(error).__name__} by the AWS SDK")
    return _transport(error, what)


def translate_read(error: Exception, what: str) -> FusefsError:
    """Like `translate`, for a read of a version that was there: not found means deleted."""
    translated = translate(error, what)
    if isinstance(translated, ObjectNotFound):
        return ObjectChanged(f"{translated}: it was deleted")
    return translated


_CREDENTIAL_ERRORS = (
    sdk.CredentialRetrievalError,
    sdk.UnknownCredentialError,
    sdk.TokenRetrievalError,
    sdk.NoAuthTokenError,
    sdk.SSOError,
    sdk.LoginError,
)
"""The chain found a source of credentials, and it failed: a process, a login that ran out."""

_CREDENTIAL_OPERATIONS = frozenset(
    {"AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetRoleCredentials"}
)
"""What the SDK asks of STS and SSO on its way to credentials: their refusal is not the bucket's."""

_SETTING_ERRORS = (
    sdk.ConfigParseError,
    sdk.ConfigNotFound,
    sdk.InvalidConfigError,
    sdk.InvalidRegionError,
    sdk.InvalidS3AddressingStyleError,
    sdk.BaseEndpointResolverError,
    sdk.UnsupportedS3ArnError,
    sdk.UnsupportedS3AccesspointConfigurationError,
    sdk.EndpointProviderError,
    sdk.ParamValidationError,
)
"""What the environment, ~/.aws/config or the source says makes no sense to the SDK."""


def _answered(response: Mapping[str, Any], what: str) -> FusefsError:
    """The store answered, with an error."""
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    details = response.get("Error", {})
    # A HEAD has no body, and botocore gives its status as the code. A code is a word; what is not
    # came from something that is no S3.
    code = str(details.get("Code", ""))
    said = _said(status, code)
    region = headers.get("x-amz-bucket-region") or details.get("Region")
    if code in _THROTTLED or status in (429, 503):
        return StoreThrottled(
            f"{what} must wait: the store is busy ({said})", retry_after_s(headers)
        )
    if code in _DENIED:
        return AccessDenied(f"{what} is refused: {_DENIED[code]} ({said})")
    if code in _OVERTAKEN:
        return ObjectChanged(f"{what} failed: {_OVERTAKEN[code]} ({said})")
    if code == "BadDigest":
        return StoreUnavailable(f"{what} failed: the data were damaged on the way ({said})")
    if code == "NoSuchBucket":
        return ObjectNotFound(f"{what} does not exist: there is no such bucket")
    if code == "InvalidObjectState":
        return Unsupported(f"{what} is archived: it must be restored before it can be read")
    if status in (301, 307) or code in _WRONG_REGION:
        known = f"in region {region!r}" if _is_word(region) else "in another region"
        return ConfigError(f"{what} is {known}: set s3.region, or s3.endpoint_url ({said})")
    if status == 404 or code == "KeyTooLongError":
        return ObjectNotFound(f"{what} does not exist")
    if status in (412, 416):
        return ObjectChanged(f"{what} was overwritten")
    if status in (401, 403) and _skew_s(headers) > _SKEW_MAX_S:
        return AccessDenied(f"{what} is refused: {_DENIED['RequestTimeTooSkewed']} ({said})")
    if status in (401, 403):
        return AccessDenied(f"{what} is refused: check credentials and policy ({said})")
    if status == 408 or code == "RequestTimeout":
        return StoreTimeout(f"{what} did not come in time ({said})")
    if status == 409 or status >= 500:
        return StoreUnavailable(f"{what} is not available now ({said})")
    if status == 400 and not code.isalpha():
        # A HEAD: the SDK has looked for another region itself by now.
        return AccessDenied(f"{what} is refused: the credentials have expired, most often ({said})")
    return FusefsError(f"{what} cannot be had: the store does not take the request ({said})")


def _no_role(error: sdk.ClientError, what: str) -> FusefsError:
    """The service that gives credentials answered, with an error."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{error.operation_name}: {_said(status, code_of(error))}"
    if status in (429, 503) or status >= 500:
        return StoreUnavailable(f"{what} must wait: no credentials are to be had now ({said})")
    return AccessDenied(
        f"{what} cannot be asked for: no credentials are given for the role: check AWS_ROLE_ARN,"
        f" its trust policy and the token's age ({said})"
    )


def _said(status: int, code: str) -> str:
    return f"status {status}" + (f", {code}" if re.fullmatch(r"[A-Za-z]\w{0,63}", code) else "")


_OVERTAKEN: dict[str, str] = {
    "NoSuchUpload": "somebody else ended this upload: push again",
    "InvalidPart": "somebody else wrote to this upload: push again",
    "InvalidPartOrder": "somebody else wrote to this upload: push again",
}
"""What two uploads of one key do to each other."""

_SKEW_MAX_S = 900.0
"""Amazon refuses signatures that are 15 minutes off; to a HEAD it does not say why."""

_WRONG_REGION = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)


def _transport(error: Exception, what: str) -> FusefsError:
    """No answer, or half of one."""
    for cause in chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{what} cannot be had: the server's certificate is not trusted"
                f" ({cause.verify_message}); set AWS_CA_BUNDLE to the file of its authority"
            )
        if isinstance(cause, (FileNotFoundError, PermissionError)):
            return ConfigError(f"{what} cannot be had: AWS_CA_BUNDLE names no readable file")
    if isinstance(error, _TIMEOUTS):
        return StoreTimeout(f"{what} did not come in time: the store is silent")
    if isinstance(error, ResponseParserError):
        return StoreUnavailable(f"{what} did not come: the answer is not S3's, or only half of one")
    if isinstance(error, SENSELESS) and not isinstance(error, _VALUE_ERRORS_OF_TRANSPORT):
        # Often the last header of a head that broke off, so another try may help.
        return StoreUnavailable(f"{what} did not come: the answer has a value that makes no sense")
    reasons = [cause.strerror for cause in chain(error) if isinstance(cause, OSError)]
    reason = next((text for text in reasons if text), type(error).__name__)
    return StoreUnavailable(f"{what} did not come: {reason}")


_TIMEOUTS = (
    sdk.ConnectTimeoutError,
    sdk.ReadTimeoutError,
    urllib3.exceptions.TimeoutError,
    TimeoutError,
)

_VALUE_ERRORS_OF_TRANSPORT = (sdk.BotoCoreError, urllib3.exceptions.HTTPError, OSError)
"""Some of these are ValueErrors by inheritance only."""


def _skew_s(headers: Mapping[str, str]) -> float:
    """How far the clocks of the store and of this machine are apart, in seconds, if it says."""
    try:
        return abs(parsedate_to_datetime(headers["date"]).timestamp() - time.time())
    except (KeyError, TypeError, *SENSELESS):
        return 0.0


def _is_word(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[a-z0-9-]{1,32}", text) is not None
