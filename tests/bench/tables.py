"""The figures as text: one table for each scenario and origin, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tests.bench.report import SPEEDS, Row

NAME_COLUMNS = 1
"""These are aligned to the left."""


def tables(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Lay out all rows: a heading and a table for each origin and scenario, in order.

    `titles` tell what a scenario does, by its name.
    """
    places = dict.fromkeys((row.origin, row.scenario) for row in rows)
    parts = []
    for origin, scenario in places:
        here = [row for row in rows if (row.origin, row.scenario) == (origin, scenario)]
        title = titles.get(scenario, scenario)
        parts.append(f"{scenario} at {origin}: {title}\n\n{table(here)}")
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Lay out the rows of one scenario; columns in which nobody has a figure are left out."""
    unit = rows[0].unit
    better = "more" if unit in SPEEDS else "less"
    heads = (
        "contestant",
        f"median {unit} ({better} is better)",
        "min",
        "max",
        "of ceiling",
        "x best peer",
        "CPU s/GB",
        "reader's",
        "requests",
        "fetched",
        "PSS MiB",
        "over limit",
        "also",
    )
    lines = [heads, *(_cells(row) for row in rows)]
    shown = [place for place in range(len(heads)) if any(line[place] for line in lines[1:])]
    return _laid_out([tuple(line[place] for place in shown) for line in lines])


def errors(rows: Iterable[Row]) -> str:
    """Tell what went wrong, a line for each row without a figure."""
    return "\n".join(
        f"{row.origin} {row.scenario} {row.label}: {row.error}" for row in rows if row.error
    )


def _laid_out(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    laid = [
        "| "
        + " | ".join(
            cell.ljust(width) if place < NAME_COLUMNS else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + ("-" if place < NAME_COLUMNS else ":")
        for place, width in enumerate(widths)
    )
    return "\n".join([laid[0], rule + "|", *laid[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    if row.error is not None:
        return (row.label, "invalid", *[""] * 11)
    return (
        row.label,
        _figure(row.median),
        _figure(row.least),
        _figure(row.most),
        _told(row.to_ceiling, ".2f"),
        _told(row.to_peer, ".2f"),
        _told(row.cpu_s_per_gb, ".2f"),
        _told(row.reader_cpu_s_per_gb, ".2f"),
        _told(row.requests, ".0f"),
        _told(row.fetched_to_wanted, ".3f"),
        _told(row.pss_mib, ".0f"),
        _told(row.memory_over_limit_mib, "+.0f"),
        "; ".join(f"{name} {_figure(value)}" for name, value in row.extra.items()),
    )


def _figure(value: float | None) -> str:
    """Tell four digits at least: 0.831, 37.5, 1250."""
    if value is None:
        return ""
    return format(value, ".3f" if abs(value) < 10 else ".1f" if abs(value) < 1000 else ".0f")


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
