"""The error tree. Every failure of a store or of the engine is one of these classes.

Each class knows the errno an application sees and whether the fetcher may try again
(`StoreUnavailable` and below). An error crosses a process boundary as `to_wire` and comes back
through `from_wire`.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class FusefsError(Exception):
    """Base of all failures. The message is one sentence a user can act on; it holds no secret."""

    errno: ClassVar[int] = errno.EIO


class ConfigError(FusefsError):
    """The user asked for something that is not valid; exit status 2."""

    errno = errno.EINVAL


class ObjectNotFound(FusefsError):
    """The object, prefix or bucket does not exist."""

    errno = errno.ENOENT


class AccessDenied(FusefsError):
    """The store refused: missing, wrong or expired credentials, or a policy."""

    errno = errno.EACCES


class ObjectChanged(FusefsError):
    """The pinned version is gone: the object was overwritten or deleted."""

    errno = errno.ESTALE


class StoreUnavailable(FusefsError):
    """The store could not answer now; trying again may help."""

    errno = errno.EIO


class StoreThrottled(StoreUnavailable):
    """The store asked us to slow down; `retry_after_s` is what it said, if it did."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreTimeout(StoreUnavailable):
    """The store did not answer within the deadline."""

    errno = errno.ETIMEDOUT


class CorruptData(FusefsError):
    """The store answered with bytes that are not the ones asked for."""

    errno = errno.EIO


class ChecksumMismatch(CorruptData):
    """The bytes that came are not those that a checksum was made of."""


class Unsupported(FusefsError):
    """The store cannot do this."""

    errno = errno.EOPNOTSUPP


class CannotStart(FusefsError):
    """The system refused us a process; it may grant it later."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"cannot start the mount's processes: {reason}; raise the limit of processes"
            " (ulimit -u, pids.max), of open files (ulimit -n) or of memory"
        )


class InternalError(FusefsError):
    """A defect of fusefs; logged with its traceback."""

    errno = errno.EIO


_CLASSES: dict[str, type[FusefsError]] = {
    cls.__name__: cls
    for cls in (
        FusefsError,
        ConfigError,
        ObjectNotFound,
        AccessDenied,
        ObjectChanged,
        StoreUnavailable,
        StoreThrottled,
        StoreTimeout,
        CorruptData,
        ChecksumMismatch,
        Unsupported,
        InternalError,
    )
}


def to_wire(error: FusefsError) -> dict[str, Any]:
    """Encode an error as JSON-able values: `{"class", "message", "retry_after_s"?}`."""
    wire: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
    if isinstance(error, StoreThrottled) and error.retry_after_s is not None:
        wire["retry_after_s"] = error.retry_after_s
    return wire


def from_wire(wire: dict[str, Any]) -> FusefsError:
    """Decode `to_wire`; an unknown class becomes `InternalError`."""
    cls = _CLASSES.get(wire["class"], InternalError)
    if cls is StoreThrottled:
        return StoreThrottled(wire["message"], wire.get("retry_after_s"))
    return cls(wire["message"])
