"""The faults: what each does, how long, and what a reader may see of it.

A table and nothing else; `tests/faults/scene.py` runs them, and docs/semantics.md has the same
table in words, which a test compares. The one idea: a fault ends in the right bytes, or in one
errno within one time, and which of the two is said here before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from tests.faults.link import ENDLESS_S, FAIR, Weather
from tests.faults.origin import Origin

FAIR_RATE = FAIR.rate

HASTY_S = 8.0
"""`engine.read_deadline_s` where a fault outlasts it."""

PATIENT_S = 60.0
"""`engine.read_deadline_s` where it does not: longer than what it takes to notice silence, 20 s,
and to come back from it."""

Within = Literal["never", "at once", "the deadline"]
"""When a reader gets the errno."""

NAMES_TTL_S = 5.0
"""`tree.ttl_s` of these mounts: names are asked for while the load is under way."""

RENEW_S = 10.0
"""How often a mount looks for other credentials (`fusefs.store.s3_client.RENEW_EVERY_S`)."""

AT_ONCE_S = 10.0
"""A few round trips and three tries, on a busy machine."""


class Stage(Protocol):
    """What a fault may touch."""

    @property
    def origin(self) -> Origin:
        """The server that answers wrongly."""

    def weather(self, weather: Weather) -> int:
        """Change the link; how often the weather until now struck."""

    def overwrite(self) -> None:
        """Put other bytes in the place of every file."""

    def delete(self) -> None:
        """Delete every file."""

    def restore(self) -> None:
        """Put the files back as they were, so that they can be loaded again."""

    def lose_name(self) -> None:
        """Let no name of a server be found any more, and those who are connected go."""

    def find_name(self) -> int:
        """Let names be found again; how often one was not."""

    def renew(self) -> None:
        """Put other credentials where the mount finds them."""


Act = Callable[[Stage], None]
Heal = Callable[[Stage], int]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row.

    `errno` is the only one that a read may see (a mapped file's is SIGBUS), `reopened` the one of a
    file that is opened later; "" means that nobody may notice anything but time. `begin` strikes
    `early`, before the first request, or once the load is under way; `end` heals and says how often
    it struck, after `lasts_s`, or when all readers have ended. `seen`: at least one reader must see
    the errno, not only may. `listing`: what loads is a reader of names. `returns_s`: so long after
    all is well errors may still come. `by_name`: the mount knows its server by name. `scheme`: the
    store. `brief`: runs in `make test` as well, where a fault like it does not.
    """

    name: str
    begin: Act
    end: Heal
    errno: str = ""
    reopened: str = ""
    within: Within = "never"
    deadline_s: float = PATIENT_S
    lasts_s: float | None = None
    long_s: float | None = None
    early: bool = False
    seen: bool = True
    listing: bool = False
    returns_s: float = 0.0
    by_name: bool = False
    scheme: str = "s3"
    brief: bool = True

    @property
    def bound_s(self) -> float:
        """The longest that one access may take."""
        return AT_ONCE_S if self.within == "at once" else self.deadline_s


def _injected(name: str, every: int = 1, scope: str = "objects", **values: str) -> tuple[Act, Heal]:
    return (
        lambda stage: stage.origin.inject(name, every, scope, **values),
        lambda stage: stage.origin.heal(),
    )


def _weather(weather: Weather) -> tuple[Act, Heal]:
    def begin(stage: Stage) -> None:
        stage.weather(weather)

    return begin, lambda stage: stage.weather(FAIR)


def _status(
    status: int, code: str, every: int = 1, scope: str = "objects", **more: str
) -> tuple[Act, Heal]:
    return _injected("status", every, scope, status=str(status), code=code, **more)


def _renewed(stage: Stage) -> None:
    """The new credentials are there first, as it should be."""
    stage.renew()
    stage.origin.inject(
        "status", scope="all", status="403", code="ExpiredToken", user=Credentials.first
    )


def _renewed_late(stage: Stage) -> int:
    """The old ones stay refused; others come to where the mount looks for them."""
    stage.renew()
    return stage.origin.counts()[1]


class Credentials:
    """The two access keys that the server knows."""

    first = "test"
    second = "test2"


def _once(act: Callable[[Stage], None]) -> tuple[Act, Heal]:
    def end(stage: Stage) -> int:
        stage.restore()
        return 1

    return act, end


_EXPIRED = _status(403, "ExpiredToken", scope="all", user=Credentials.first)[0]

FAULTS: tuple[Fault, ...] = (
    # -- the server is busy -------------------------------------------------------------------
    Fault("503", *_status(503, "SlowDown", every=10), early=True),
    Fault(
        "429", *_status(429, "TooManyRequests", every=10, retry_after="1"),
        early=True, brief=False,
    ),
    Fault("retry-after", *_status(503, "SlowDown", every=10, retry_after="86400"), early=True),
    # -- connections ---------------------------------------------------------------------------
    Fault("reset", *_weather(Weather(event="reset", every=9)), early=True),
    Fault("short", *_injected("short", every=5), early=True),
    Fault("stall", *_weather(Weather(event="stall", every=16, seconds=3.0)), early=True),
    Fault("endless", *_weather(Weather(event="stall", every=24, seconds=ENDLESS_S)), early=True),
    Fault("late", *_injected("late", every=5, seconds=str(ENDLESS_S)), early=True),
    Fault(
        "silent", *_injected("late", scope="all", seconds=str(ENDLESS_S)),
        errno="ETIMEDOUT", within="the deadline", deadline_s=HASTY_S,
    ),
    Fault("trickle", *_weather(Weather(event="trickle", every=24)), early=True),
    Fault("slow", *_weather(Weather(slow=50e3)), early=True),
    Fault("collapse", *_weather(Weather(rate=FAIR_RATE / 50)), lasts_s=4.0, long_s=30.0),
    # -- answers that lie ------------------------------------------------------------------------
    Fault("content-range", *_injected("wrong-range", every=10), early=True),
    Fault("content-range-always", *_injected("wrong-range"), errno="EIO", within="at once"),
    Fault("etag", *_injected("wrong-etag"), errno="ESTALE", within="at once"),
    Fault("412", *_status(412, "PreconditionFailed"), errno="ESTALE", within="at once"),
    Fault("416", *_status(416, "InvalidRange"), errno="ESTALE", within="at once", brief=False),
    Fault("gzip", *_injected("gzip", every=10), early=True),
    Fault("gzip-always", *_injected("gzip"), errno="EIO", within="at once"),
    Fault("content-length", *_injected("wrong-length", every=10), early=True, brief=False),
    # -- gone ------------------------------------------------------------------------------------
    Fault("gone", *_weather(Weather(refused=True)), lasts_s=8.0, long_s=60.0, deadline_s=120.0),
    Fault(
        "gone-for-good", *_weather(Weather(refused=True)),
        errno="ETIMEDOUT", within="the deadline", deadline_s=HASTY_S,
    ),
    Fault("cut", *_weather(Weather(silent=True)), lasts_s=8.0, long_s=60.0, deadline_s=120.0),
    Fault(
        "dns", lambda stage: stage.lose_name(), lambda stage: stage.find_name(), by_name=True,
        lasts_s=6.0, long_s=60.0, deadline_s=120.0,
    ),
    # -- who asks, and what for --------------------------------------------------------------------
    Fault("renewed", _renewed, lambda stage: stage.origin.heal()),
    Fault("expired", _EXPIRED, _renewed_late, errno="EACCES", within="at once", returns_s=RENEW_S),
    Fault(
        "skew", *_status(403, "RequestTimeTooSkewed", scope="all"),
        errno="EACCES", within="at once", brief=False,
    ),
    Fault(
        "deleted", *_once(lambda stage: stage.delete()),
        errno="ESTALE", reopened="ENOENT", within="at once", returns_s=2 * NAMES_TTL_S,
    ),
    Fault(
        "overwritten", *_once(lambda stage: stage.overwrite()), errno="ESTALE", within="at once",
        returns_s=2 * NAMES_TTL_S, seen=False,
    ),
    # -- names -------------------------------------------------------------------------------------
    Fault(
        "listing", *_status(500, "InternalError", scope="lists"), early=True, lasts_s=3.0
    ),
    Fault(
        "listing-for-good", *_status(500, "InternalError", scope="lists"), early=True,
        errno="ETIMEDOUT", within="the deadline", deadline_s=HASTY_S,
    ),
    Fault(
        "pagination", *_injected("loop", scope="lists"), early=True, listing=True,
        errno="EIO", within="at once",
    ),
)  # fmt: skip

ELSEWHERE: tuple[Fault, ...] = (
    Fault("gs-429", *_status(429, "rateLimitExceeded", every=10), early=True, scheme="gs"),
    Fault(
        "gs-reset", *_weather(Weather(event="reset", every=9)),
        early=True, scheme="gs", brief=False,
    ),
    Fault(
        "gs-gone", *_weather(Weather(refused=True)),
        lasts_s=4.0, long_s=60.0, deadline_s=120.0, scheme="gs", brief=False,
    ),
    Fault(
        "gs-412", *_status(412, "conditionNotMet"),
        errno="ESTALE", within="at once", scheme="gs",
    ),
    Fault("az-503", *_status(503, "ServerBusy", every=10), early=True, scheme="az"),
    Fault(
        "az-reset", *_weather(Weather(event="reset", every=9)),
        early=True, scheme="az", brief=False,
    ),
    Fault(
        "az-gone", *_weather(Weather(refused=True)),
        lasts_s=4.0, long_s=60.0, deadline_s=120.0, scheme="az",
    ),
    Fault(
        "az-412", *_status(412, "ConditionNotMet"),
        errno="ESTALE", within="at once", scheme="az", brief=False,
    ),
    Fault(
        "redis-reset", *_weather(Weather(event="reset", every=9)),
        early=True, scheme="redis", brief=False,
    ),
    Fault(
        "redis-trickle", *_weather(Weather(event="trickle", every=24)), early=True, scheme="redis"
    ),
    Fault(
        "redis-gone", *_weather(Weather(refused=True)),
        lasts_s=4.0, long_s=60.0, deadline_s=120.0, scheme="redis",
    ),
)  # fmt: skip
"""What differs where the store is another: its errors, and how it is connected."""

BY_NAME = {fault.name: fault for fault in (*FAULTS, *ELSEWHERE)}
