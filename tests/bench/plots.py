"""The figures as pictures, one per scenario and origin: `… tests.bench.plots REPORT DIRECTORY`.

Draws a report as `report.to_json` makes it, so that old reports can be drawn again. One idea: the
bar is the median, the whisker goes from the worst to the best round, each round is a dot; whoever
looks sees what is noise.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.report import SPEEDS

SUBJECT = "fusefs"
CEILINGS = ("raw", "tmpfs")
COLOURS = {"subject": "#1f6fb4", "ceiling": "#c8c8c8", "other": "#8a8a8a"}
"""The subject stands out, what nobody can reach stands back; told apart without colours as well."""
ROOM = 1.18
"""Of the longest bar: the rest is for its figure."""
DPI = 130


@dataclass(frozen=True, slots=True)
class Bar:
    """One contestant: median, worst and best round, every round; `kind` is a key of COLOURS."""

    label: str
    kind: str
    value: float
    low: float
    high: float
    points: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture; `limit` is where the axis ends, which tmpfs may run past."""

    name: str
    title: str
    axis: str
    bars: tuple[Bar, ...]
    limit: float


def charts(report: Mapping[str, Any]) -> tuple[Chart, ...]:
    """Return what there is to draw; contestants without a figure are left out."""
    rows = [row for row in report["summary"] if row["median"] is not None]
    places = dict.fromkeys((row["origin"], row["scenario"]) for row in rows)
    made = []
    for origin, scenario in places:
        here = [row for row in rows if (row["origin"], row["scenario"]) == (origin, scenario)]
        bars = tuple(_bar(row, report["samples"]) for row in here)
        # Memory is many times faster than any link: on its scale the others could not be compared.
        compared = [bar.high for bar in bars if bar.label != "tmpfs"] or [bars[0].high]
        unit = here[0]["unit"]
        better = "more is better" if unit in SPEEDS else "less is better"
        title = report.get("titles", {}).get(scenario, "")
        made.append(
            Chart(
                name=f"{scenario}-{origin.replace(':', '-')}",
                title=f"{scenario} at {origin}\n{title}",
                axis=f"{unit} ({better})",
                bars=bars,
                limit=max(compared) * ROOM or 1.0,
            )
        )
    return tuple(made)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_all(report: Mapping[str, Any], directory: Path) -> tuple[Path, ...]:
    """Write a PNG for each chart into `directory` (made if missing); return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    source = _source(report)
    return tuple(_draw(chart, source, directory) for chart in charts(report))


def _bar(row: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Bar:
    place = ("origin", "scenario", "label")
    points = tuple(
        sample["value"]
        for sample in samples
        if sample["value"] is not None and all(sample[name] == row[name] for name in place)
    )
    kind = "other"
    if row["contestant"] in CEILINGS:
        kind = "ceiling"
    elif row["contestant"] == SUBJECT:
        kind = "subject"
    return Bar(row["label"], kind, row["median"], row["least"], row["most"], points)


def _source(report: Mapping[str, Any]) -> str:
    """Tell where the figures come from: one without its machine is a rumour."""
    machine = report.get("machine", {})
    return (
        f"{machine.get('cores')} cores, Linux {machine.get('kernel')}, "
        f"commit {(report.get('commit') or 'none')[:12]}, {report.get('date')}"
    )


def _draw(chart: Chart, source: str, directory: Path) -> Path:
    # Here: only a run that draws needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.9 + 0.48 * len(chart.bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, bar in enumerate(chart.bars):
        shown = min(bar.value, chart.limit)
        axes.barh(place, shown, height=0.62, color=COLOURS[bar.kind])
        inside = bar.value <= chart.limit
        if inside:
            axes.plot([bar.low, bar.high], [place, place], color="black", linewidth=1)
            axes.plot(bar.points, [place] * len(bar.points), "k.", markersize=4)
        axes.annotate(
            f"{bar.value:.3g}" if inside else f"{bar.value:.3g}, beyond the axis",
            (max(shown, min(bar.high, chart.limit)), place),
            xytext=(5 if inside else -5, 0),
            textcoords="offset points",
            va="center",
            ha="left" if inside else "right",
        )
    axes.set_yticks(range(len(chart.bars)), [bar.label for bar in chart.bars])
    axes.invert_yaxis()
    axes.set_xlim(0, chart.limit)
    axes.set_xlabel(f"{chart.axis}; bar: median, dots: rounds\n{source}", fontsize=8)
    axes.set_title(chart.title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path = directory / f"{chart.name}.png"
    figure.savefig(path, dpi=DPI)
    return path


def main() -> None:
    """Draw the report named on the command line."""
    report, directory = sys.argv[1:3]
    for path in draw_all(json.loads(Path(report).read_text()), Path(directory)):
        print(path)


if __name__ == "__main__":
    main()
