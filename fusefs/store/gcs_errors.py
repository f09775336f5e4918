"""What the Google Cloud Storage adapter's failures are called here, and what to do about them.

Only translates; whether and when to try again is decided elsewhere, by class. The one idea: a
message is made of our words, the status, Google's reason where it is one word, and names that the
user typed. Texts of the SDK and of the server are left out, for they may hold tokens or URLs.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
from collections.abc import Mapping
from typing import Any

import requests
import urllib3.exceptions
from google.api_core.exceptions import GoogleAPICallError
from google.auth import exceptions as auth

from fusefs.errors import (
    AccessDenied,
    ConfigError,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
)
from fusefs.store.http_errors import SENSELESS, chain, retry_after_s

SDK_ERRORS = (
    GoogleAPICallError,
    auth.GoogleAuthError,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    *SENSELESS,
)
"""Everything that the SDK, google-auth and requests let through. OSError is socket and ssl;
ValueError is JSON that is none, a size that is no number, a key that is not UTF-8."""

_THROTTLED = frozenset(
    {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "downloadQuotaExceeded"}
)
"""Some come with status 403."""

_DENIED: dict[str, str] = {
    "accountDisabled": "the billing account of the project is disabled",
    "authError": "the credentials are not valid any more: renew them",
    "forbidden": "these credentials may not do it: grant them a role on the bucket",
    "insufficientPermissions": "the credentials lack the scope: renew them with devstorage access",
    "required": "it wants credentials, or gcs.billing_project where the reader pays",
    "userProjectAccountProblem": "gcs.billing_project has no valid billing account",
    "userProjectInvalid": "gcs.billing_project is not a project",
    "userProjectMissing": "the reader pays: set gcs.billing_project",
}
"""Reasons of https://cloud.google.com/storage/docs/json_api/v1/status-codes that mean credentials
or who pays. `required` of a request that lacks nothing else is one of these two."""

_NO_CREDENTIALS = (
    "no usable Google credentials: run `gcloud auth application-default login`, name a key file in"
    " GOOGLE_APPLICATION_CREDENTIALS, give this machine a service account, or set gcs.anonymous"
)

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Where requests looks for whom to trust, in its order."""

_WORD = re.compile(r"[A-Za-z]\w{0,63}")


def translate(error: Exception, what: str) -> FusefsError:
    """The `FusefsError` for anything of `SDK_ERRORS`; `what` is the subject of its sentence."""
    if isinstance(error, GoogleAPICallError):
        return _answered(error, what)
    if isinstance(error, UnicodeEncodeError):
        return ObjectNotFound(f"{what} does not exist: its name is not UTF-8")
    if isinstance(error, auth.GoogleAuthError):
        return _without_credentials(error, what)
    return _transport(error, what)


def translate_read(error: Exception, what: str) -> FusefsError:
    """Like `translate`, for a read of a version that was there: not found means it is gone."""
    translated = translate(error, what)
    if isinstance(translated, ObjectNotFound):
        return ObjectChanged(f"{what} was overwritten or deleted")
    return translated


def _answered(error: GoogleAPICallError, what: str) -> FusefsError:
    """The store answered, with an error."""
    status = int(error.code or 0)
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    reason = _reason(error)
    said = f"status {status}" + (f", {reason}" if reason else "")
    if status in (429, 503) or reason in _THROTTLED:
        return StoreThrottled(
            f"{what} must wait: the store is busy ({said})", retry_after_s(headers)
        )
    if status in (401, 403) or (status == 400 and reason in _DENIED):
        advice = _DENIED.get(reason, "check credentials and policy")
        return AccessDenied(f"{what} is refused: {advice} ({said})")
    if status in (404, 410):
        return ObjectNotFound(f"{what} does not exist")
    if status in (304, 412, 416):
        return ObjectChanged(f"{what} was overwritten")
    if status == 408:
        return StoreTimeout(f"{what} did not come in time ({said})")
    if status == 409 or status >= 500:
        return StoreUnavailable(f"{what} is not available now ({said})")
    return FusefsError(f"{what} cannot be had: the store does not take the request ({said})")


def _reason(error: GoogleAPICallError) -> str:
    """Google's one word for it, or ""; what is no word came from something that is not Google."""
    details: Any = error.errors
    first = details[0] if isinstance(details, (list, tuple)) and details else None
    reason = first.get("reason") if isinstance(first, Mapping) else None
    return reason if isinstance(reason, str) and _WORD.fullmatch(reason) else ""


def _without_credentials(error: auth.GoogleAuthError, what: str) -> FusefsError:
    """Google was not asked: there is nothing to show it, or it could not be renewed."""
    if isinstance(error, auth.DefaultCredentialsError):
        return AccessDenied(f"{what} cannot be asked for: {_NO_CREDENTIALS}")
    unreachable = any(isinstance(cause, auth.TransportError) for cause in chain(error))
    if unreachable or error.retryable:
        return StoreUnavailable(f"{what} must wait: the service that issues tokens gives none now")
    words = [cause.get("error") for cause in error.args if isinstance(cause, Mapping)]
    code = next((w for w in words if isinstance(w, str) and _WORD.fullmatch(w)), None)
    return AccessDenied(
        f"{what} cannot be asked for: Google does not renew these credentials"
        f" ({code or type(error).__name__}): make new ones, and check this machine's clock"
    )


def _transport(error: Exception, what: str) -> FusefsError:
    """No answer, or half of one."""
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{what} cannot be had: the server's certificate is not trusted"
                f" ({cause.verify_message}); set REQUESTS_CA_BUNDLE to the file of its authority"
            )
    bundle = next((name for name in _BUNDLES if os.environ.get(name)), None)
    # requests says no more of a bundle that is not there; a socket's errors have a number.
    if type(error) is OSError and bundle is not None and not os.path.exists(os.environ[bundle]):
        return ConfigError(f"{what} cannot be had: {bundle} names no readable file")
    # urllib3 counts a refused connection among the timeouts.
    refused = any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes)
    if not refused and any(isinstance(cause, _TIMEOUTS) for cause in causes):
        return StoreTimeout(f"{what} did not come in time: the store is silent")
    if isinstance(error, SENSELESS) and not isinstance(error, _VALUE_ERRORS_OF_TRANSPORT):
        return StoreUnavailable(f"{what} did not come: the answer has a value that makes no sense")
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError)]
    reason = next((text for text in reasons if text), type(error).__name__)
    return StoreUnavailable(f"{what} did not come: {reason}")


_VALUE_ERRORS_OF_TRANSPORT = (OSError, urllib3.exceptions.HTTPError)
"""Some of these are ValueErrors by inheritance only, as some of requests' are."""

_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
