"""What the errors of all SDKs that speak HTTP have in common: causes inside causes, and waits.

Shared by the adapters' translations. The one idea: the reason a person can act on (a certificate, a
refused connection) lies deep inside what the SDK raised, and each library on the way hides it in
another place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

SENSELESS = (ValueError, OverflowError, RecursionError)
"""What parsers of headers, dates, XML and JSON raise for what no store would say: no number, a date
beyond the calendar, a thousand brackets."""

_RETRY_AFTER_MAX_S = 300.0
"""A larger Retry-After is a mistake or an attack; a deadline passes long before."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those inside it.

    botocore wraps in a keyword, azure-core in a field, urllib3 and requests in an argument.
    """
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [getattr(cause, "kwargs", {}).get("error"), cause.__cause__, cause.__context__]
        waiting += [getattr(cause, "inner_exception", None), getattr(cause, "reason", None)]
        waiting += cause.args


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, if it is there and makes sense (RFC 9110, 10.2.3).

    The names of `headers` are in lower case, or it does not care.
    """
    text = headers.get("retry-after", "")
    try:
        if text.isdecimal():
            return min(float(text), _RETRY_AFTER_MAX_S)
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])
    except (KeyError, TypeError, *SENSELESS):
        return None
    return min(max(wait.total_seconds(), 0.0), _RETRY_AFTER_MAX_S)
