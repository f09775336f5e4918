"""From our errors to gRPC's codes, and the frame around every call: log line, metric, code.

The codes decide what kubelet does next: Unavailable, Aborted and DeadlineExceeded mean "may still
be under way", everything else is final (kubernetes/kubernetes, csi_client.go: isFinalError). No
request is logged: what is told is the method, the code and our own sentence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from fusefs.errors import (
    AccessDenied,
    ConfigError,
    FusefsError,
    ObjectNotFound,
    StoreUnavailable,
    Unsupported,
)
from fusefs.kubernetes.credentials import Unauthenticated
from fusefs.kubernetes.mounts import TargetOccupied, TargetUnusable

log = logging.getLogger("fusefs.kubernetes")


class Refused(FusefsError):
    """A call that is answered with exactly this code."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


CODES: tuple[tuple[type[FusefsError], grpc.StatusCode, str], ...] = (
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT, "an attribute, option or secret is wrong"),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED, "the volume came without credentials"),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED, "the store refused the credentials"),
    (ObjectNotFound, grpc.StatusCode.NOT_FOUND, "the bucket or prefix does not exist"),
    (StoreUnavailable, grpc.StatusCode.UNAVAILABLE, "the store or the mounter cannot be reached"),
    (Unsupported, grpc.StatusCode.FAILED_PRECONDITION, "the volume is asked for what it cannot do"),
    (TargetUnusable, grpc.StatusCode.FAILED_PRECONDITION, "the target is in the way"),
    (TargetOccupied, grpc.StatusCode.ALREADY_EXISTS, "something else is mounted at the target"),
    (FusefsError, grpc.StatusCode.INTERNAL, "this node or the driver fails"),
)
"""Which error becomes which code: the first row that fits. `Refused` brings its own."""


def code_of(error: FusefsError) -> grpc.StatusCode:
    """The code that goes with an error."""
    if isinstance(error, Refused):
        return error.code
    return next(code for cls, code, _ in CODES if isinstance(error, cls))


class Calls:
    """Wraps the methods of a service.

    The mutable state of Calls is how often each method was answered with each code.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()

    def method(
        self, name: str, answer: Callable[[Any, grpc.ServicerContext], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        """`answer`, with its errors as codes."""

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                answered = answer(request, context)
            except FusefsError as error:
                self._refuse(name, code_of(error), str(error), context)
            except OSError as error:
                named = f"{error.filename}: " if error.filename else ""
                sentence = f"{named}{error.strerror or error}"
                self._refuse(name, grpc.StatusCode.INTERNAL, sentence, context)
            self.answered[name, "OK"] += 1
            return answered

        return call

    def _refuse(
        self, name: str, code: grpc.StatusCode, sentence: str, context: grpc.ServicerContext
    ) -> None:
        self.answered[name, code.name] += 1
        log.warning("%s: %s: %s", name, code.name, sentence)
        context.abort(code, sentence)
