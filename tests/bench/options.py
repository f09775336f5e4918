"""The command line of the bench, parsed and checked before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import contestants
from tests.bench.content import Sizes
from tests.bench.origin import Shape, parse_shape
from tests.bench.plots import can_draw
from tests.bench.scenarios import SCENARIOS, Scenario

COPIES = 6
"""Of the model in memory at once: the origin's, a peer's cache, the page cache of the mount, the
loaded tensors, fusefs' arena or the upload's page cache, the smaller models together."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be run; `given` is the command line as text, for the report."""

    scenarios: tuple[Scenario, ...]
    contestants: tuple[str, ...]
    shapes: tuple[Shape, ...]
    rounds: int
    minutes: float
    sizes: Sizes
    json: Path | None
    plots: Path | None
    rclone: str | None
    fusefs_options: tuple[str, ...]
    limit_s: float
    given: dict[str, str]

    @property
    def memory_needed_bytes(self) -> int:
        """What must be free before the start."""
        return COPIES * self.sizes.shards * self.sizes.shard_bytes


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options; a wrong command line ends the process with status 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.plots is not None and not can_draw():
        parser.error("--plots needs matplotlib: pip install -e '.[bench]'")
    shapes: list[Shape] = given.origins
    if given.tls:
        shapes += [Shape(shape.rate_mb, shape.ttfb_ms, tls=True) for shape in shapes]
    return Options(
        scenarios=given.only,
        contestants=tuple(given.contestants.split(",")),
        shapes=tuple(dict.fromkeys(shapes)),
        rounds=given.rounds,
        minutes=given.minutes,
        sizes=Sizes(given.shards, given.shard_mb << 20, given.objects),
        json=given.json,
        plots=given.plots,
        rclone=given.rclone,
        fusefs_options=tuple(given.fusefs_option),
        limit_s=given.limit_s,
        given={name: _shown(value) for name, value in vars(given).items()},
    )


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_shown(one) for one in value)
    if isinstance(value, Scenario):
        return value.name
    return value.label if isinstance(value, Shape) else str(value)


def _scenarios(text: str) -> tuple[Scenario, ...]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"unknown scenario {name!r}: one of {', '.join(known)}"
            )
    return tuple(scenario for scenario in SCENARIOS if scenario.name in text.split(","))


def _shapes(text: str) -> list[Shape]:
    try:
        return [parse_shape(one) for one in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    names = ",".join(scenario.name for scenario in SCENARIOS)
    takers = ",".join(contestants.DEFAULT)
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure fusefs beside its peers."
    )
    add = parser.add_argument
    add("--only", type=_scenarios, default=SCENARIOS, help=f"scenarios, by comma: {names}")
    add("--contestants", default=takers, help=f"{takers}; PEER:VARIANT, PEER:*")
    add("--rounds", type=int, default=3)
    add("--minutes", type=float, default=25, help="for each origin: no round starts too late")
    add(
        "--origins", type=_shapes, default=[Shape(80, 25.0)],
        help="MiB/s of one connection : ms to its first byte, by comma: 80:25,10:100,400:5",
    )  # fmt: skip
    add("--tls", action="store_true", help="run every origin with TLS as well")
    add("--shards", type=int, default=4)
    add("--shard-mb", type=int, default=400, help="MiB of tensors in each shard, each model file")
    add("--objects", type=int, default=10_000, help="how many are listed")
    add("--json", type=Path, help="write every sample here")
    add("--plots", type=Path, help="draw every figure into this folder")
    add("--rclone", help="another rclone than the one found")
    add("--fusefs-option", action="append", default=[], help="e.g. --memory=1G")
    add("--limit-s", type=float, default=300.0, help="for one reader")
    return parser
