"""From samples to figures: medians, ratios within a round, the table. Pure: no clock, no I/O.

One idea: a figure with wrong bytes, or with a round that failed, is not a figure; it is shown as
what went wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

GB = 1e9
MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contestant. `bytes` is the model's size; `seconds` None if it failed."""

    scenario: str
    contestant: str
    label: str
    round: int
    seconds: float | None
    bytes: int
    error: str | None
    cpu_s: float | None
    requests: int
    bytes_fetched: int
    peak_pss_bytes: int | None
    memory_limit_bytes: int | None
    counters: Mapping[str, int]

    @property
    def valid(self) -> bool:
        """Whether the run ended and every byte that was looked at was right."""
        return self.error is None and self.seconds is not None and self.seconds > 0

    @property
    def gb_per_s(self) -> float:
        """Model bytes per second, in 10^9 bytes; only of a valid sample."""
        assert self.seconds is not None
        return self.bytes / self.seconds / GB

    def line(self) -> str:
        """Tell the sample in one line."""
        told = f"{self.gb_per_s:.3f} GB/s" if self.valid else f"INVALID: {self.error}"
        return f"{self.scenario:8}{self.label:24}{told}"


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one scenario, over all rounds. Figures are None where there are none."""

    scenario: str
    label: str
    contestant: str
    rounds: int
    error: str | None
    median_gb_per_s: float | None
    min_gb_per_s: float | None
    max_gb_per_s: float | None
    to_raw: float | None
    """Median of the ratios to the raw ceiling of the same round."""
    to_peer: float | None
    """Median of the ratios to the best peer (by median) of the same round."""
    cpu_s_per_gb: float | None
    requests: float | None
    fetched_to_model: float | None
    """Bytes the origin sent to bytes of the model."""
    peak_pss_mib: float | None
    """Highest PSS of all processes of the mount, over all rounds."""
    memory_over_limit_mib: float | None
    """The same less the memory limit, round by round; negative when below it."""


def summarise(samples: Iterable[Sample], raw: str, peers: Sequence[str]) -> tuple[Row, ...]:
    """Return a row for each scenario and contestant, in order of appearance."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.scenario, sample.label), []).append(sample)
    rows = []
    for (scenario, _), group in groups.items():
        here = [members for (name, _), members in groups.items() if name == scenario]
        ceiling = _by_round(_best([one for one in here if one[0].contestant == raw]))
        rival = _by_round(_best([one for one in here if one[0].contestant in peers]))
        rows.append(_row(group, ceiling, rival))
    return tuple(rows)


def ratio(group: Iterable[Sample], others: Mapping[int, float]) -> float | None:
    """Return the median over the rounds of (this / the other), None without a common round."""
    ratios = [
        sample.gb_per_s / others[sample.round]
        for sample in group
        if sample.valid and sample.round in others
    ]
    return median(ratios) if ratios else None


def _row(group: list[Sample], ceiling: Mapping[int, float], rival: Mapping[int, float]) -> Row:
    first = group[0]
    error = next((sample.error or "no time" for sample in group if not sample.valid), None)
    speeds = [sample.gb_per_s for sample in group if sample.valid] if error is None else []
    whole = group if error is None else []
    peaks = [s.peak_pss_bytes / MIB for s in whole if s.peak_pss_bytes is not None]
    over = [
        (sample.peak_pss_bytes - sample.memory_limit_bytes) / MIB
        for sample in whole
        if sample.peak_pss_bytes is not None and sample.memory_limit_bytes is not None
    ]
    cpu = [sample.cpu_s * GB / sample.bytes for sample in whole if sample.cpu_s is not None]
    return Row(
        scenario=first.scenario,
        label=first.label,
        contestant=first.contestant,
        rounds=len(group),
        error=error,
        median_gb_per_s=_median(speeds),
        min_gb_per_s=min(speeds, default=None),
        max_gb_per_s=max(speeds, default=None),
        to_raw=ratio(whole, ceiling),
        to_peer=ratio(whole, rival),
        cpu_s_per_gb=_median(cpu),
        requests=_median([float(sample.requests) for sample in whole]),
        fetched_to_model=_median([sample.bytes_fetched / sample.bytes for sample in whole]),
        peak_pss_mib=max(peaks, default=None),
        memory_over_limit_mib=max(over, default=None),
    )


def _best(groups: list[list[Sample]]) -> list[Sample]:
    """Return the group with the highest median among those without an error."""
    good = [group for group in groups if all(sample.valid for sample in group)]
    return max(good, key=lambda group: median(s.gb_per_s for s in group), default=[])


def _by_round(group: list[Sample]) -> dict[int, float]:
    return {sample.round: sample.gb_per_s for sample in group}


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


COLUMNS = (
    "scenario",
    "contestant",
    "median",
    "min",
    "max GB/s",
    "of raw",
    "x peer",
    "CPU s/GB",
    "requests",
    "fetched",
    "peak PSS MiB",
    "over limit",
)


def table(rows: Iterable[Row]) -> str:
    """Lay the rows out for a terminal; also valid Markdown."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    laid = [
        "| "
        + " | ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + ("-" if place < 2 else ":") for place, width in enumerate(widths)
    )
    return "\n".join([laid[0], rule + "|", *laid[1:]])


def errors(rows: Iterable[Row]) -> str:
    """Tell what went wrong, a line for each row without a figure."""
    return "\n".join(f"{row.scenario} {row.label}: {row.error}" for row in rows if row.error)


def to_json(
    samples: Sequence[Sample], rows: Sequence[Row], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the whole report as JSON-able values: the facts, the summary, every sample."""
    return {
        "format": 1,
        **facts,
        "summary": [asdict(row) for row in rows],
        "samples": [asdict(sample) for sample in samples],
    }


def _cells(row: Row) -> tuple[str, ...]:
    if row.error is not None:
        return (row.scenario, row.label, "invalid", *("" for _ in COLUMNS[3:]))
    speeds: tuple[str, ...] = (
        _told(row.median_gb_per_s, ".3f"),
        _told(row.min_gb_per_s, ".3f"),
        _told(row.max_gb_per_s, ".3f"),
        _told(row.to_raw, ".2f"),
        _told(row.to_peer, ".2f"),
        _told(row.cpu_s_per_gb, ".2f"),
    )
    if row.peak_pss_mib is not None:
        # Looking at the memory took time: these are not the mount's.
        speeds = ("",) * len(speeds)
    return (
        row.scenario,
        row.label,
        *speeds,
        _told(row.requests, ".0f"),
        _told(row.fetched_to_model, ".3f"),
        _told(row.peak_pss_mib, ".0f"),
        _told(row.memory_over_limit_mib, "+.0f"),
    )


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
