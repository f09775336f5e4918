"""The arithmetic of the bench: what is a figure, against what it is compared, how it is told."""

from __future__ import annotations

import json

import pytest

from tests.bench.report import Sample, errors, summarise, table, to_json

MODEL_BYTES = 2_000_000_000


def make_sample(
    label: str,
    number: int,
    seconds: float | None,
    *,
    error: str | None = None,
    pss: int | None = None,
) -> Sample:
    """One run of `label` ("name" or "name:variant") in scenario "read"."""
    return Sample(
        scenario="read",
        contestant=label.partition(":")[0],
        label=label,
        round=number,
        seconds=seconds,
        bytes=MODEL_BYTES,
        error=error,
        cpu_s=3.0,
        requests=240,
        bytes_fetched=MODEL_BYTES * 11 // 10,
        peak_pss_bytes=pss,
        memory_limit_bytes=None if pss is None else 1 << 30,
        counters={},
    )


def test_median_is_over_rounds() -> None:
    """A contestant's figure is the median of its rounds, beside the slowest and the fastest."""
    (row,) = summarise(
        [make_sample("a", n, s) for n, s in ((1, 1.0), (2, 4.0), (3, 2.0))], "raw", ()
    )
    assert (row.median_gb_per_s, row.min_gb_per_s, row.max_gb_per_s) == (1.0, 0.5, 2.0)


def test_ratio_is_within_the_round() -> None:
    """A round in which the machine is slow for everybody does not change a ratio."""
    rows = summarise(
        [
            *(make_sample("raw", n, s) for n, s in ((1, 1.0), (2, 10.0), (3, 1.0))),
            *(make_sample("fusefs", n, s) for n, s in ((1, 2.0), (2, 20.0), (3, 2.0))),
        ],
        "raw",
        (),
    )
    assert [row.to_raw for row in rows] == [1.0, 0.5]


def test_best_peer_is_the_one_with_the_best_median() -> None:
    """The rival is one peer throughout: the fastest by median, whichever wins a single round."""
    rows = summarise(
        [
            *(make_sample("a", n, s) for n, s in ((1, 4.0), (2, 4.0), (3, 1.0))),
            *(make_sample("b:tuned", n, s) for n, s in ((1, 2.0), (2, 2.0), (3, 2.0))),
            *(make_sample("fusefs", n, 1.0) for n in (1, 2, 3)),
        ],
        "raw",
        ("a", "b"),
    )
    assert [row.to_peer for row in rows] == [0.5, 1.0, 2.0]


def test_scenarios_are_not_mixed() -> None:
    """A peer's figure in one scenario is no rival in another."""
    other = make_sample("fusefs", 1, 1.0)
    elsewhere = Sample(
        **{name: getattr(other, name) for name in Sample.__slots__} | {"scenario": "mmap"}
    )
    rows = summarise([make_sample("a", 1, 1.0), elsewhere], "raw", ("a",))
    assert rows[1].to_peer is None


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_one_wrong_round_takes_the_figure(seconds: float | None) -> None:
    """A contestant with a failed or wrong round has no figure at all, and the table says so."""
    bad = make_sample("fusefs", 2, seconds, error="other bytes at 7")
    rows = summarise([make_sample("fusefs", 1, 1.0), bad], "raw", ())
    assert rows[0].median_gb_per_s is None
    assert "invalid" in table(rows)
    assert errors(rows) == "read fusefs: other bytes at 7"


def test_a_broken_peer_is_no_rival() -> None:
    """A peer that fails is not what others are compared with."""
    broken = make_sample("a", 1, 0.1, error="other bytes at 7")
    rows = summarise([broken, make_sample("b", 1, 2.0), make_sample("fusefs", 1, 1.0)], "raw", "ab")
    assert [row.to_peer for row in rows] == [None, 1.0, 2.0]


def test_cost_is_per_model_byte() -> None:
    """CPU time and fetched bytes are told for each byte of the model, not of what was fetched."""
    (row,) = summarise([make_sample("fusefs", 1, 1.0)], "raw", ())
    assert (row.cpu_s_per_gb, row.fetched_to_model) == (1.5, 1.1)


def test_memory_is_the_worst_round_over_the_limit() -> None:
    """Of memory the highest round counts, less the limit."""
    samples = [make_sample("fusefs", n, 1.0, pss=(1 << 30) + (n << 20)) for n in (1, 2, 3)]
    (row,) = summarise(samples, "raw", ())
    assert (row.peak_pss_mib, row.memory_over_limit_mib) == (1027.0, 3.0)


def test_speed_is_not_told_where_memory_was_watched() -> None:
    """A run that was slowed down by looking at its memory shows no speed."""
    (row,) = summarise([make_sample("fusefs", 1, 2.0, pss=1 << 30)], "raw", ())
    assert "1.000" not in table([row])
    assert "1024" in table([row])


def test_table_columns_line_up() -> None:
    """Every line of the table is as wide as the others, with one cell per column."""
    rows = summarise(
        [make_sample("raw", 1, 1.0), make_sample("a:long-variant", 1, 3.0)], "raw", "a"
    )
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len({(len(line), line.count("|")) for line in lines}) == 1


def test_report_is_json() -> None:
    """The report survives JSON with its facts, its summary and every sample."""
    samples = [make_sample("raw", 1, 1.0), make_sample("fusefs", 1, 2.0)]
    report = to_json(samples, summarise(samples, "raw", ()), {"commit": "abc"})
    back = json.loads(json.dumps(report))
    assert back["commit"] == "abc"
    assert [row["to_raw"] for row in back["summary"]] == [1.0, 0.5]
    assert [sample["seconds"] for sample in back["samples"]] == [1.0, 2.0]
