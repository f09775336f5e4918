"""What the Azure adapter's failures are called here, and what a person should do about them.

Only translates; whether and when to try again is decided elsewhere, by class. The one idea: a
message is made of our words, the store's error code (a header, `x-ms-error-code`), and names that
the user typed. Bodies and the SDK's texts are left out, for they may hold keys or signed URLs.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from xml.etree.ElementTree import ParseError

import requests.exceptions
import urllib3.exceptions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
)

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
    AzureError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ParseError,
    OSError,
    *SENSELESS,
)
"""Everything a request through azure-core lets through. OSError is socket and ssl; ValueError is a
header that is no number or date, or a key that is not UTF-8."""

_DENIED: dict[str, str] = {
    "AccountIsDisabled": "the storage account is disabled",
    "AuthenticationFailed": "the credentials do not fit the account: check key, SAS or identity",
    "AuthorizationFailure": (
        "the account's network rules keep this machine out, or the credentials do not cover it"
    ),
    "AuthorizationPermissionMismatch": (
        "these credentials may not do that: the role Storage Blob Data Reader lets read (a SAS:"
        " the permissions r and l)"
    ),
    "AuthorizationProtocolMismatch": "the SAS demands https",
    "AuthorizationResourceTypeMismatch": "the SAS is not for containers and objects (srt=co)",
    "AuthorizationServiceMismatch": "the SAS is not for blobs (ss=b)",
    "AuthorizationSourceIPMismatch": "the SAS is for other addresses than this machine's",
    "BlobImmutableDueToPolicy": "a policy keeps it from being changed",
    "InsufficientAccountPermissions": "these credentials may not do that",
    "InvalidAuthenticationInfo": "the token or signature is not understood: check the credentials",
    "KeyBasedAuthenticationNotPermitted": (
        "the account takes no keys: give this machine an identity, or use a user delegation SAS"
    ),
    "LeaseIdMissing": "somebody holds a lease on it",
    "NoAuthenticationInformation": "it is not public, and no credentials were given",
    "PublicAccessNotPermitted": "the account has nothing public: give credentials",
}
"""Codes of https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes and
…/blob-service-error-codes that mean credentials; some come with status 400 or 409."""

_NO_CREDENTIALS = (
    "no usable Azure credentials: set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or"
    " AZURE_STORAGE_SAS_TOKEN, give this machine an identity, or set azure.anonymous"
)

_THROTTLED = frozenset({"ServerBusy", "TooManyRequests"})

_NO_SUCH_NAME = frozenset(
    {"InvalidUri", "InvalidResourceName", "OutOfRangeInput", "InvalidQueryParameterValue"}
)
"""What Azure says, with status 400, of names that no blob can have (more than 1,024 characters)."""

_CLOCKED = frozenset({"AuthenticationFailed", "AuthorizationFailure"})
"""Codes that may mean a wrong clock, or a SAS that is over."""

_CLOCK_SKEW_MAX_S = 900.0
"""Azure takes requests whose date is at most 15 minutes from its own."""


def answered(
    status: int, headers: Mapping[str, str], what: str, sas_expiry: datetime | None = None
) -> FusefsError:
    """The `FusefsError` for an answer that is an error; `what` is the subject of its sentence.

    `sas_expiry` is when our own SAS ends, if it is one: Azure tells expired from forged in the body
    only.
    """
    code = headers.get("x-ms-error-code", "")
    # A code is a word; what is not came from something that is no Azure.
    code = code if re.fullmatch(r"[A-Za-z]\w{0,63}", code) else ""
    said = f"status {status}" + (f", {code}" if code else "")
    if code in _THROTTLED or status in (429, 503):
        return StoreThrottled(
            f"{what} must wait: the store is busy ({said})", retry_after_s(headers)
        )
    if code in _CLOCKED and (reason := _why_failed(headers, sas_expiry)):
        return AccessDenied(f"{what} is refused: {reason} ({said})")
    if code in _DENIED:
        return AccessDenied(f"{what} is refused: {_DENIED[code]} ({said})")
    if code in ("BlobArchived", "BlobBeingRehydrated"):
        return Unsupported(f"{what} is archived: it must be rehydrated before it can be read")
    if code == "AccountRequiresHttps":
        return ConfigError(f"{what} cannot be had: the account takes https only ({said})")
    if code == "ContainerNotFound":
        return ObjectNotFound(f"{what} does not exist: there is no such container")
    if status == 404 or code in _NO_SUCH_NAME:
        # Azure says the same of what is private when nobody says who asks.
        return ObjectNotFound(f"{what} does not exist, or is not public ({said})")
    if status in (412, 416) or code == "BlobAlreadyExists":
        return ObjectChanged(f"{what} was overwritten")
    if code in ("Md5Mismatch", "InvalidMd5"):
        return StoreUnavailable(f"{what} did not arrive as it was sent ({said})")
    if status in (401, 403):
        return AccessDenied(f"{what} is refused: check credentials and role ({said})")
    if status == 408:
        return StoreTimeout(f"{what} did not come in time ({said})")
    if status == 409 or status >= 500:
        return StoreUnavailable(f"{what} is not available now ({said})")
    return FusefsError(f"{what} cannot be had: the store does not take the request ({said})")


def translate(error: Exception, what: str) -> FusefsError:
    """The `FusefsError` for anything of `SDK_ERRORS`; `what` is the subject of its sentence."""
    if isinstance(error, UnicodeEncodeError):
        return ObjectNotFound(f"{what} does not exist: its name is not UTF-8")
    if isinstance(error, ParseError):
        return StoreUnavailable(f"{what} did not come: the answer is not XML, or half of it")
    if isinstance(error, ClientAuthenticationError):
        status = getattr(error.response, "status_code", None)
        if status is not None and (status == 429 or status >= 500):
            return StoreUnavailable(f"{what} must wait: the identity service gives no token now")
        return AccessDenied(f"{what} cannot be asked for: {_NO_CREDENTIALS}")
    return _transport(error, what)


def translate_read(error: FusefsError) -> FusefsError:
    """The same for a read of a version that was there: not found means deleted."""
    return ObjectChanged(f"{error}: it was deleted") if isinstance(error, ObjectNotFound) else error


def _transport(error: Exception, what: str) -> FusefsError:
    """No answer, or half of one."""
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{what} cannot be had: the server's certificate is not trusted"
                f" ({cause.verify_message}); set REQUESTS_CA_BUNDLE to the file of its authority"
            )
        if isinstance(cause, socket.gaierror):
            return StoreUnavailable(
                f"{what} did not come: the name of its host does not resolve; check the account's"
                " name, or azure.endpoint_url"
            )
    if any(isinstance(cause, _TIMEOUTS) and not _refused(cause) for cause in causes):
        return StoreTimeout(f"{what} did not come in time: the store is silent")
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError)]
    reason = next((text for text in reasons if text), None)
    if reason is None and isinstance(error, SENSELESS) and not isinstance(error, OSError):
        # Often the last header of a head that broke off, so another try may help.
        return StoreUnavailable(f"{what} did not come: the answer has a value that makes no sense")
    return StoreUnavailable(f"{what} did not come: {reason or type(error).__name__}")


_TIMEOUTS = (
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
    urllib3.exceptions.TimeoutError,
    TimeoutError,
)


def _refused(cause: BaseException) -> bool:
    """To urllib3 every connection that cannot be made is a timeout, by inheritance."""
    return isinstance(cause, urllib3.exceptions.NewConnectionError)


def _why_failed(headers: Mapping[str, str], sas_expiry: datetime | None) -> str | None:
    """What Azure's clock says about a failed authentication, if it says anything."""
    here = datetime.now(UTC)
    try:
        there = parsedate_to_datetime(headers["date"])
        skew_s = (here - there).total_seconds()
    except (KeyError, TypeError, *SENSELESS):
        there, skew_s = here, 0.0
    if abs(skew_s) > _CLOCK_SKEW_MAX_S:
        return f"the clock of this machine is {abs(skew_s) / 60:.0f} minutes wrong: set it"
    if sas_expiry is not None and sas_expiry <= there:
        return f"the SAS has expired on {sas_expiry:%Y-%m-%d %H:%M} UTC: get a new one"
    return None
