"""The command line, and the shapes of origins in it."""

from __future__ import annotations

import pytest

from tests.bench.options import parse_options
from tests.bench.origin import Shape, Traffic, count, parse_shape
from tests.bench.scenarios import SCENARIOS


def test_the_default_is_everything_at_one_origin() -> None:
    """Without options every scenario runs at one origin, three rounds, within a bound."""
    options = parse_options([])
    assert options.scenarios == SCENARIOS
    assert options.shapes == (Shape(80, 25.0),)
    assert (options.rounds, options.minutes) == (3, 25)


def test_scenarios_run_in_the_order_of_the_table() -> None:
    """`--only` chooses; it does not order."""
    options = parse_options(["--only", "mmap,read"])
    assert [scenario.name for scenario in options.scenarios] == ["read", "mmap"]


def test_tls_repeats_every_origin() -> None:
    """`--tls` runs each origin without and with it, each once."""
    options = parse_options(["--origins", "80:25,10:100:tls,10:100", "--tls"])
    labels = [shape.label for shape in options.shapes]
    assert labels == ["80:25", "10:100:tls", "10:100", "80:25:tls"]


@pytest.mark.parametrize("text", ["80", "80:x", "0:1", "80:-1", "80:25:ssl", "80:25:tls:tls", ""])
def test_a_wrong_origin_is_refused(text: str) -> None:
    """What is no rate and latency is refused."""
    with pytest.raises(ValueError, match=r".+"):
        parse_shape(text)


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--origins", "fast"]])
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown scenario or origin ends the run before it begins, and is named."""
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_given_is_text() -> None:
    """The report tells the parameters as one would write them."""
    given = parse_options(["--only", "read", "--origins", "80:25,400:5"]).given
    assert (given["only"], given["origins"]) == ("read", "80:25,400:5")


def test_the_log_is_counted_by_halves() -> None:
    """Every request counts, bytes only of objects, what came after `/.again` also by itself."""
    log = [
        b"GET 7 204 /.mark",
        b"GET 900 200 /models",
        b"GET 900 200 /models/",
        b"HEAD 0 200 /models/model/a",
        b"GET 100 206 /models/model/a",
        b"GET 50 412 /models/model/a",
        b"GET 0 204 /.again",
        b"GET 30 200 /models/configuration/a file.json",
    ]
    assert count(log) == Traffic(requests=6, bytes=130, again_requests=1, again_bytes=30)
    assert count(log[:6]) == Traffic(requests=5, bytes=100, again_requests=0, again_bytes=0)
