"""The arithmetic of the bench: what is a figure, against what it is compared, how it is told."""

from __future__ import annotations

import json

import pytest

from tests.bench.report import GB_PER_S, KIB_PER_FILE, MS, PSS_MIB, Sample, summarise, to_json
from tests.bench.tables import errors, table, tables

MODEL_BYTES = 2_000_000_000


def make_sample(
    label: str,
    number: int,
    seconds: float | None,
    *,
    error: str | None = None,
    pss: int | None = None,
    unit: str = GB_PER_S,
    origin: str = "80:25",
    scenario: str = "read",
) -> Sample:
    """One run of `label` ("name" or "name:variant")."""
    return Sample(
        scenario=scenario,
        unit=unit,
        origin=origin,
        contestant=label.partition(":")[0],
        label=label,
        round=number,
        seconds=seconds,
        bytes=MODEL_BYTES,
        wanted_bytes=MODEL_BYTES,
        files=4,
        error=error,
        cpu_s=3.0,
        reader_cpu_s=1.0,
        requests=240,
        bytes_fetched=MODEL_BYTES * 11 // 10,
        pss_bytes=pss,
        memory_limit_bytes=None if pss is None else 1 << 30,
        counters={},
        extra={"again_ms": 2.0 * number},
    )


def test_median_is_over_rounds() -> None:
    """A contestant's figure is the median of its rounds, beside the slowest and the fastest."""
    (row,) = summarise(
        [make_sample("a", n, s) for n, s in ((1, 1.0), (2, 4.0), (3, 2.0))], ("raw",), ()
    )
    assert (row.median, row.least, row.most) == (1.0, 0.5, 2.0)


def test_ratio_is_within_the_round() -> None:
    """A round in which the machine is slow for everybody does not change a ratio."""
    rows = summarise(
        [
            *(make_sample("raw", n, s) for n, s in ((1, 1.0), (2, 10.0), (3, 1.0))),
            *(make_sample("fusefs", n, s) for n, s in ((1, 2.0), (2, 20.0), (3, 2.0))),
        ],
        ("raw",),
        (),
    )
    assert [row.to_ceiling for row in rows] == [1.0, 0.5]


def test_best_peer_is_the_one_with_the_best_median() -> None:
    """The rival is one peer throughout: the fastest by median, whichever wins a single round."""
    rows = summarise(
        [
            *(make_sample("a", n, s) for n, s in ((1, 4.0), (2, 4.0), (3, 1.0))),
            *(make_sample("b:tuned", n, s) for n, s in ((1, 2.0), (2, 2.0), (3, 2.0))),
            *(make_sample("fusefs", n, 1.0) for n in (1, 2, 3)),
        ],
        ("raw",),
        ("a", "b"),
    )
    assert [row.to_peer for row in rows] == [0.5, 1.0, 2.0]


def test_scenarios_are_not_mixed() -> None:
    """A peer's figure in one scenario is no rival in another."""
    elsewhere = make_sample("fusefs", 1, 1.0, scenario="mmap")
    rows = summarise([make_sample("a", 1, 1.0), elsewhere], ("raw",), ("a",))
    assert rows[1].to_peer is None


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_one_wrong_round_takes_the_figure(seconds: float | None) -> None:
    """A contestant with a failed or wrong round has no figure at all, and the table says so."""
    bad = make_sample("fusefs", 2, seconds, error="other bytes at 7")
    rows = summarise([make_sample("fusefs", 1, 1.0), bad], ("raw",), ())
    assert rows[0].median is None
    assert "invalid" in table(rows)
    assert errors(rows) == "80:25 read fusefs: other bytes at 7"


def test_a_broken_peer_is_no_rival() -> None:
    """A peer that fails is not what others are compared with."""
    broken = make_sample("a", 1, 0.1, error="other bytes at 7")
    rows = summarise(
        [broken, make_sample("b", 1, 2.0), make_sample("fusefs", 1, 1.0)], ("raw",), "ab"
    )
    assert [row.to_peer for row in rows] == [None, 1.0, 2.0]


def test_cost_is_per_model_byte() -> None:
    """CPU time and fetched bytes are told for each byte of the model, not of what was fetched."""
    (row,) = summarise([make_sample("fusefs", 1, 1.0)], ("raw",), ())
    assert (row.cpu_s_per_gb, row.reader_cpu_s_per_gb) == (1.5, 0.5)
    assert row.fetched_to_wanted == 1.1


def test_memory_is_the_worst_round_over_the_limit() -> None:
    """Of memory the highest round counts, less the limit."""
    samples = [make_sample("fusefs", n, 1.0, pss=(1 << 30) + (n << 20)) for n in (1, 2, 3)]
    (row,) = summarise(samples, ("raw",), ())
    assert (row.pss_mib, row.memory_over_limit_mib) == (1027.0, 3.0)


def test_origins_are_not_mixed() -> None:
    """A ceiling at one origin is none at another, and each origin has a table of its own."""
    elsewhere = make_sample("fusefs", 1, 1.0, origin="10:100")
    rows = summarise([make_sample("raw", 1, 1.0), elsewhere], ("raw",), ())
    assert rows[1].to_ceiling is None
    told = tables(rows, {"read": "a cold read"})
    assert "read at 80:25: a cold read" in told
    assert "read at 10:100: a cold read" in told


def test_the_ceiling_is_the_first_that_took_part() -> None:
    """Where there is no raw fetch, the plain folder is what others are compared with."""
    samples = [make_sample("tmpfs", 1, 1.0), make_sample("fusefs", 1, 2.0)]
    assert summarise(samples, ("raw", "tmpfs"), ())[1].to_ceiling == 0.5
    samples.append(make_sample("raw", 1, 4.0))
    assert summarise(samples, ("raw", "tmpfs"), ())[1].to_ceiling == 2.0


@pytest.mark.parametrize(
    ("unit", "value"),
    [(GB_PER_S, 1.0), (MS, 2000.0), (KIB_PER_FILE, 537109.375), (PSS_MIB, 1024.0)],
)
def test_every_unit_has_its_figure(unit: str, value: float) -> None:
    """A sample's figure is in the unit of its scenario."""
    assert make_sample("fusefs", 1, 2.0, unit=unit, pss=1 << 30).value == value


def test_less_is_better_where_it_is() -> None:
    """In milliseconds twice as good is half the figure, and the best peer has the least."""
    rows = summarise(
        [
            make_sample("a", 1, 4.0, unit=MS),
            make_sample("b", 1, 2.0, unit=MS),
            make_sample("fusefs", 1, 1.0, unit=MS),
        ],
        (),
        ("a", "b"),
    )
    assert [row.to_peer for row in rows] == [0.5, 1.0, 2.0]


def test_further_figures_are_medians() -> None:
    """What a reader tells besides is the median over the rounds, in the last column."""
    (row,) = summarise([make_sample("fusefs", n, 1.0) for n in (1, 2, 9)], (), ())
    assert row.extra == {"again_ms": 4.0}
    assert "again_ms 4.000" in table([row])


def test_columns_without_a_figure_are_left_out() -> None:
    """Where nobody's memory was seen there is no column for it."""
    assert "PSS" not in table(summarise([make_sample("fusefs", 1, 1.0)], (), ()))
    assert "PSS" in table(summarise([make_sample("fusefs", 1, 1.0, pss=1 << 30)], (), ()))


def test_table_columns_line_up() -> None:
    """Every line of the table is as wide as the others, with one cell per column."""
    rows = summarise(
        [make_sample("raw", 1, 1.0), make_sample("a:long-variant", 1, 3.0)], ("raw",), "a"
    )
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len({(len(line), line.count("|")) for line in lines}) == 1


def test_report_is_json() -> None:
    """The report survives JSON with its facts, its summary and every sample."""
    samples = [make_sample("raw", 1, 1.0), make_sample("fusefs", 1, 2.0)]
    report = to_json(samples, samples[:1], summarise(samples, ("raw",), ()), {"commit": "abc"})
    back = json.loads(json.dumps(report))
    assert back["commit"] == "abc"
    assert [row["to_ceiling"] for row in back["summary"]] == [1.0, 0.5]
    assert [sample["seconds"] for sample in back["samples"]] == [1.0, 2.0]
