"""From samples to figures: medians, ratios within a round. Pure: no clock, no I/O.

One idea: a figure with wrong bytes, or with a round that failed, is not a figure; it is shown as
what went wrong. How figures are laid out is the business of `tables.py` and `plots.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

GB = 1e9
MB = 1e6
KIB = float(1 << 10)
MIB = float(1 << 20)

GB_PER_S = "GB/s"
MB_PER_S = "MB/s"
MS = "ms"
KIB_PER_FILE = "KiB/file"
PSS_MIB = "MiB"

SPEEDS = (GB_PER_S, MB_PER_S)
"""Units in which more is better; in the others less is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contestant.

    `bytes` is what the application got, `wanted_bytes` how much of it is different (ranks share a
    model), `files` how many it asked for; `seconds` is None if the run failed. `cpu_s` is the
    mount's or the fetch's, `reader_cpu_s` the application's. `pss_bytes` is the highest memory seen
    of the mount's processes. `extra` are further figures of the reader by name, the unit last.
    """

    scenario: str
    unit: str
    origin: str
    contestant: str
    label: str
    round: int
    seconds: float | None
    bytes: int
    wanted_bytes: int
    files: int
    error: str | None
    cpu_s: float | None
    reader_cpu_s: float | None
    requests: int
    bytes_fetched: int
    pss_bytes: int | None
    memory_limit_bytes: int | None
    counters: Mapping[str, int]
    extra: Mapping[str, float]

    @property
    def valid(self) -> bool:
        """Whether the run ended and every byte that was looked at was right."""
        return self.error is None and self.seconds is not None and self.seconds > 0

    @property
    def value(self) -> float:
        """The figure of the scenario, in its unit; only of a valid sample."""
        assert self.seconds is not None
        if self.unit == GB_PER_S:
            return self.bytes / self.seconds / GB
        if self.unit == MB_PER_S:
            return self.bytes / self.seconds / MB
        if self.unit == MS:
            return self.seconds * 1e3
        if self.unit == KIB_PER_FILE:
            return self.bytes_fetched / self.files / KIB
        assert self.unit == PSS_MIB
        assert self.pss_bytes is not None
        return self.pss_bytes / MIB

    def line(self) -> str:
        """Tell the sample in one line."""
        told = f"{self.value:.3f} {self.unit}" if self.valid else f"INVALID: {self.error}"
        return f"{self.origin:10}{self.scenario:13}{self.label:24}{told}"


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one scenario at one origin, over all rounds. None is: no such figure."""

    scenario: str
    unit: str
    origin: str
    label: str
    contestant: str
    rounds: int
    error: str | None
    median: float | None
    least: float | None
    most: float | None
    to_ceiling: float | None
    """Of a speed: median of how many times that of the ceiling (raw fetch, else tmpfs) in the same
    round."""
    to_peer: float | None
    """The same for the best peer (by median); of what should be little: how many times less."""
    cpu_s_per_gb: float | None
    reader_cpu_s_per_gb: float | None
    requests: float | None
    fetched_to_wanted: float | None
    """Bytes the origin sent to different bytes the application got."""
    pss_mib: float | None
    """Highest PSS of all processes of the mount, over all rounds."""
    memory_over_limit_mib: float | None
    """The same less the memory limit, round by round; negative when below it."""
    extra: Mapping[str, float]
    """Medians of the reader's further figures."""


def summarise(
    samples: Iterable[Sample], ceilings: Sequence[str], peers: Sequence[str]
) -> tuple[Row, ...]:
    """Return a row for each origin, scenario and contestant, in order of appearance.

    The ceiling is the first of `ceilings` that took part in the scenario.
    """
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.origin, sample.scenario, sample.label), []).append(sample)
    rows = []
    for (origin, scenario, _), group in groups.items():
        here = [found for place, found in groups.items() if place[:2] == (origin, scenario)]
        tops = [[one for one in here if one[0].contestant == name] for name in ceilings]
        ceiling = _scores(_best(next(filter(None, tops), [])))
        rival = _scores(_best([one for one in here if one[0].contestant in peers]))
        # What is no mount has no rivals.
        rows.append(_row(group, ceiling, {} if group[0].contestant in ceilings else rival))
    return tuple(rows)


def ratio(group: Iterable[Sample], others: Mapping[int, float]) -> float | None:
    """Return the median over the rounds of (this / the other), None without a common round."""
    ratios = [
        _score(sample) / others[sample.round]
        for sample in group
        if sample.valid and sample.round in others and others[sample.round] > 0
    ]
    return median(ratios) if ratios else None


def _row(group: list[Sample], ceiling: Mapping[int, float], rival: Mapping[int, float]) -> Row:
    first = group[0]
    error = next((sample.error or "no time" for sample in group if not sample.valid), None)
    whole = group if error is None else []
    values = [sample.value for sample in whole]
    peaks = [sample.pss_bytes / MIB for sample in whole if sample.pss_bytes is not None]
    over = [
        (sample.pss_bytes - sample.memory_limit_bytes) / MIB
        for sample in whole
        if sample.pss_bytes is not None and sample.memory_limit_bytes is not None
    ]
    moves_bytes = first.unit in SPEEDS
    loads = [sample for sample in whole if moves_bytes and sample.bytes > 0]
    cpu = [s.cpu_s * GB / s.bytes for s in loads if s.cpu_s is not None]
    reader_cpu = [s.reader_cpu_s * GB / s.bytes for s in loads if s.reader_cpu_s is not None]
    names = dict.fromkeys(name for sample in whole for name in sample.extra)
    return Row(
        scenario=first.scenario,
        unit=first.unit,
        origin=first.origin,
        label=first.label,
        contestant=first.contestant,
        rounds=len(group),
        error=error,
        median=_median(values),
        least=min(values, default=None),
        most=max(values, default=None),
        to_ceiling=ratio(whole, ceiling) if moves_bytes else None,
        to_peer=ratio(whole, rival),
        cpu_s_per_gb=_median(cpu),
        reader_cpu_s_per_gb=_median(reader_cpu),
        requests=_median([float(sample.requests) for sample in whole]),
        fetched_to_wanted=_median([s.bytes_fetched / s.wanted_bytes for s in loads]),
        pss_mib=max(peaks, default=None),
        memory_over_limit_mib=max(over, default=None),
        extra={
            name: median(sample.extra[name] for sample in whole if name in sample.extra)
            for name in names
        },
    )


def _score(sample: Sample) -> float:
    """Return the value such that more is better."""
    if sample.unit in SPEEDS:
        return sample.value
    return 1 / sample.value if sample.value > 0 else 0.0


def _best(groups: list[list[Sample]]) -> list[Sample]:
    """Return the group with the best median among those without an error."""
    good = [group for group in groups if all(sample.valid for sample in group)]
    return max(good, key=lambda group: median(_score(s) for s in group), default=[])


def _scores(group: list[Sample]) -> dict[int, float]:
    return {sample.round: _score(sample) for sample in group}


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def to_json(
    samples: Sequence[Sample],
    tried: Sequence[Sample],
    rows: Sequence[Row],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the whole report as JSON-able values: the facts, the summary, every sample.

    `tried` are the samples of the calibration.
    """
    return {
        "format": 2,
        **facts,
        "summary": [asdict(row) for row in rows],
        "samples": [_told(sample) for sample in samples],
        "calibration": [_told(sample) for sample in tried],
    }


def _told(sample: Sample) -> dict[str, Any]:
    return {**asdict(sample), "value": sample.value if sample.valid else None}
