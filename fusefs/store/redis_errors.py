"""What the Redis adapter's failures are called here, and what a person should do about them.

Only translates. The one idea: a message is made of our words and the first word of the server's
error (`NOAUTH`, `LOADING`, …); the rest of the server's text is left out, for it may hold names.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from redis import exceptions as sdk

from fusefs.errors import (
    AccessDenied,
    ConfigError,
    FusefsError,
    ObjectNotFound,
    StoreThrottled,
    StoreTimeout,
    StoreUnavailable,
    Unsupported,
)

SDK_ERRORS = (sdk.RedisError, sdk.RedisClusterException, OSError, ValueError)
"""Everything a client of redis-py lets through. OSError is socket and ssl; ValueError is text that
is not UTF-8."""

_CREDENTIALS = "set REDISCLI_AUTH to the password, and redis.username if the user is not 'default'"

_BY_CLASS: tuple[tuple[type[Exception], type[FusefsError], str], ...] = (
    (sdk.NoPermissionError, AccessDenied, "is refused: this user may not do that (NOPERM)"),
    (sdk.AuthenticationError, AccessDenied, f"is refused: {_CREDENTIALS}"),
    (sdk.AuthorizationError, AccessDenied, f"is refused: {_CREDENTIALS}"),
    (sdk.AuthenticationWrongNumberOfArgsError, AccessDenied, f"is refused: {_CREDENTIALS}"),
    (sdk.BusyLoadingError, StoreUnavailable, "must wait: the server is loading its data (LOADING)"),
    (sdk.OutOfMemoryError, FusefsError, "has no room: raise the server's maxmemory (OOM)"),
    (sdk.ReadOnlyError, FusefsError, "cannot be written: name the primary, not a replica"),
    (sdk.MasterDownError, StoreUnavailable, "must wait: its primary is down (MASTERDOWN)"),
    (sdk.ClusterDownError, StoreUnavailable, "must wait: the cluster is not whole (CLUSTERDOWN)"),
    (sdk.TryAgainError, StoreUnavailable, "must wait: its slot is moving (TRYAGAIN)"),
    (sdk.AskError, StoreUnavailable, "must wait: its slot has moved (MOVED)"),
    (sdk.MaxConnectionsError, StoreUnavailable, "must wait: all connections are in use"),
    (sdk.TimeoutError, StoreTimeout, "did not come in time: the server is silent"),
    (TimeoutError, StoreTimeout, "did not come in time: the server is silent"),
    (sdk.InvalidResponse, StoreUnavailable, "did not come: the answer is not Redis', or torn"),
    (UnicodeEncodeError, ObjectNotFound, "does not exist: its name is not UTF-8"),
)
"""Looked through in order: subclasses first."""

_BY_WORD: dict[str, tuple[type[FusefsError], str]] = {
    "NOAUTH": (AccessDenied, f"is refused: {_CREDENTIALS}"),
    "WRONGPASS": (AccessDenied, f"is refused: {_CREDENTIALS}"),
    "NOPERM": (AccessDenied, "is refused: this user may not do that"),
    "BUSY": (StoreThrottled, "must wait: a script keeps the server busy"),
    "MISCONF": (FusefsError, "cannot be written: the server cannot save to its disk"),
    "NOREPLICAS": (StoreUnavailable, "must wait: the server misses replicas"),
    "OOM": (FusefsError, "has no room: raise the server's maxmemory"),
    "WRONGTYPE": (FusefsError, "cannot be had: another program uses a key of that name"),
}
"""Error replies that redis-py has no class for (some versions strip others' first word)."""


def translate(error: Exception, what: str) -> FusefsError:
    """The `FusefsError` for anything of `SDK_ERRORS`; `what` is the subject of its sentence."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{what} cannot be had: the server's certificate is not trusted"
                f" ({cause.verify_message}); set redis.ca_file to the file of its authority"
            )
        if isinstance(cause, FileNotFoundError | PermissionError):
            return ConfigError(f"{what} cannot be had: redis.ca_file names no readable file")
    for cause in chain:
        for kind, result, text in _BY_CLASS:
            if isinstance(cause, kind):
                return result(f"{what} {text}")
    word = str(error).split(" ", 1)[0]
    if word in _BY_WORD:
        result, text = _BY_WORD[word]
        return result(f"{what} {text} ({word})")
    said = str(error).casefold()
    if "db index is out of range" in said:
        return ObjectNotFound(f"{what} does not exist: the server has no database of that number")
    if "select is not allowed in cluster mode" in said:
        return ObjectNotFound(f"{what} does not exist: a cluster has database 0 only")
    if "max number of clients" in said:
        return StoreThrottled(f"{what} must wait: the server has its maxclients")
    if "unknown command" in said:
        return Unsupported(f"{what} cannot be had: the server lacks a command; Redis 6 has all")
    if isinstance(error, sdk.ResponseError):
        shown = word if word.isalpha() and word.isupper() else "ERR"
        return FusefsError(f"{what} cannot be had: the server does not take the request ({shown})")
    reasons = (cause.strerror for cause in chain if isinstance(cause, OSError))
    reason = next((text for text in reasons if text), type(error).__name__)
    return StoreUnavailable(f"{what} did not come: {reason}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that caused it: redis-py wraps while it handles."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
