"""What is drawn of a report; that it can be drawn, not how it looks."""

from __future__ import annotations

from tests.bench.plots import charts
from tests.bench.report import GB_PER_S, summarise, to_json
from tests.bench.test_report import make_sample


def test_each_scenario_and_origin_is_a_chart() -> None:
    """A chart shows one scenario at one origin, under a name that can be a file's."""
    samples = [
        make_sample("fusefs", 1, 1.0),
        make_sample("fusefs", 1, 1.0, scenario="mmap"),
        make_sample("fusefs", 1, 1.0, origin="80:25:tls"),
    ]
    report = to_json(samples, [], summarise(samples, (), ()), {"titles": {"mmap": "mapped"}})
    made = charts(report)
    assert [chart.name for chart in made] == ["read-80-25", "mmap-80-25", "read-80-25-tls"]
    assert made[1].title == "mmap at 80:25\nmapped"
    assert made[0].axis == f"{GB_PER_S} (more is better)"


def test_a_bar_is_the_median_and_all_rounds() -> None:
    """A bar has the median, the worst and best round, and a point for every round."""
    samples = [make_sample("fusefs", number, seconds) for number, seconds in ((1, 1.0), (2, 4.0))]
    samples.append(make_sample("raw", 1, 1.0))
    (chart,) = charts(to_json(samples, [], summarise(samples, (), ()), {}))
    bar, ceiling = chart.bars
    assert (bar.low, bar.value, bar.high, bar.points) == (0.5, 1.25, 2.0, (2.0, 0.5))
    assert (bar.kind, ceiling.kind) == ("subject", "ceiling")


def test_what_has_no_figure_is_not_drawn() -> None:
    """A contestant with a wrong round has no bar."""
    samples = [make_sample("a", 1, 1.0, error="other bytes"), make_sample("fusefs", 1, 1.0)]
    (chart,) = charts(to_json(samples, [], summarise(samples, (), ()), {}))
    assert [bar.label for bar in chart.bars] == ["fusefs"]


def test_memory_does_not_set_the_scale() -> None:
    """The axis ends behind the best of those who use the link."""
    samples = [make_sample("tmpfs", 1, 0.01), make_sample("fusefs", 1, 2.0)]
    (chart,) = charts(to_json(samples, [], summarise(samples, (), ()), {}))
    assert 1.0 < chart.limit < 2.0
