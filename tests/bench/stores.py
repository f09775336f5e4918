"""`python -m tests.bench.stores`: a row per store: what its adapter fetches, what the mount gives.

Every store is a real server of this machine, filled by `fusefs push` and seen through a link with a
bandwidth (`link.py`). Rounds are interleaved as in the bench proper. One idea: the ceiling goes
through the same adapter, so that the ratio is the mount's; and the link is slower than two cores,
so that the machine is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import machine
from tests.bench.job import Job
from tests.bench.link import open_link
from tests.bench.mounts import MountCommand, open_mount
from tests.bench.processes import ChildFailed, cpu_seconds, run_limited
from tests.bench.store_places import PLACES, Bounds, Place
from tests.bench.weights import write_weights

CLI = (sys.executable, "-m", "fusefs.cli")
LIMIT_S = 300.0
EXIT_TERMINATED = 128 + signal.SIGTERM
TOUCH_BYTES = 3 << 30
SETTINGS = ((2, 16), (4, 16), (2, 32))
"""Processes x threads that the ceiling is tried with; the fastest is kept."""


def main() -> int:
    """Measure; every store has its row, or what failed is raised."""
    options = _parse(sys.argv[1:])
    # Ended by whoever is tired of waiting, too, it leaves no network, mount or server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as memory,
        open_link(options.rate_mb, options.total_mb) as link,
    ):
        bounds = Bounds(options.rate_mb, options.total_mb, link)
        originals = Path(memory) / "model"
        names = write_weights(originals, options.shards, options.shard_mb << 20)
        for name in options.only.split(","):
            folder = Path(directory) / name
            folder.mkdir()
            with PLACES[name](folder, bounds, partial(_fill, originals)) as place:
                reader = _Reader(place, bounds.link.inside, originals, names, Path(memory))
                rows.append(_measure(reader, options.rounds))
    print(_table(rows))
    if options.json is not None:
        facts = {**machine.facts({}), "parameters": vars(options) | {"json": None}}
        options.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.stores", description="Measure the mount of every store."
    )
    parser.add_argument("--only", default=",".join(PLACES), help="stores, by comma: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rate-mb", type=int, default=25, help="MiB/s of one connection (%(default)s)"
    )
    parser.add_argument("--total-mb", type=int, default=300, help="of all (%(default)s)")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--shard-mb", type=int, default=400)
    parser.add_argument("--json", type=Path, help="write every sample here")
    options = parser.parse_args(argv)
    for name in options.only.split(","):
        if name not in PLACES:
            parser.error(f"unknown store {name!r}: one of {', '.join(PLACES)}")
    return options


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who reads the model of a place, on the clients' side of the link."""

    place: Place
    inside: tuple[str, ...]
    originals: Path
    names: tuple[str, ...]
    memory: Path

    def raw(self, processes: int, threads: int) -> dict[str, Any]:
        """Read it with so many threads and no mount."""
        _touch()
        job = {
            "source": self.place.source,
            "processes": processes,
            "threads": threads,
            "range_bytes": 8 << 20,
            "originals": str(self.originals),
        }
        command = [sys.executable, "-m", "tests.bench.store_raw", json.dumps(job)]
        return self._told([*self.inside, *command], lambda: None)

    def mounted(self) -> dict[str, Any]:
        """One cold read of every shard, one thread, on a fresh mount without a setting."""
        _touch()
        how = MountCommand(
            command=(*self.inside, *CLI, "mount", self.place.source, "{mountpoint}"),
            umount=(*CLI, "umount", "{mountpoint}"),
            returns=True,
        )
        with open_mount(how, self.memory, self.place.environment, LIMIT_S) as mount:
            before = cpu_seconds(mount.pids)
            job = Job(str(mount.path), str(self.originals), "", list(self.names), 0, 0)
            reader = [sys.executable, "-m", "tests.bench.application", "read"]
            told = self._told([*reader, json.dumps(asdict(job))], mount.abort)
            told["cpu_s"] = cpu_seconds(mount.pids) - before
        return told

    def _told(self, command: list[str], unstick: Callable[[], None]) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(
            run_limited(command, LIMIT_S, unstick, self.place.environment)
        )
        if told["wrong"]:
            raise ChildFailed(f"{self.place.name}: {told['wrong'][0]}")
        return told


def _fill(originals: Path, source: str, environment: Mapping[str, str]) -> None:
    run_limited([*CLI, "push", str(originals), source], LIMIT_S, lambda: None, environment)


def _measure(reader: _Reader, rounds: int) -> dict[str, Any]:
    """Calibrate the ceiling, then take turns; a round's ratio is within the round."""
    setting = max(SETTINGS, key=lambda setting: _speed(reader.raw(*setting)))
    samples: dict[str, list[dict[str, Any]]] = {"raw": [], "fusefs": []}
    runs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("raw", lambda: reader.raw(*setting)),
        ("fusefs", reader.mounted),
    ]
    for number in range(rounds):
        for label, run in runs if number % 2 else reversed(runs):
            told = run()
            line = f"{reader.place.name:<8}{label:<8}{_speed(told):.3f} GB/s"
            print(line, file=sys.stderr, flush=True)
            samples[label].append(told)
    ratios = [
        _speed(fusefs) / _speed(raw)
        for raw, fusefs in zip(samples["raw"], samples["fusefs"], strict=True)
    ]
    return {
        "store": reader.place.name,
        "server": reader.place.server,
        "setting": f"{setting[0]}x{setting[1]}",
        "ratio": median(ratios),
        "samples": samples,
    }


def _touch() -> None:
    run_limited(
        [sys.executable, "-m", "tests.bench.touch", str(TOUCH_BYTES)], LIMIT_S, lambda: None
    )


def _speed(told: dict[str, Any]) -> float:
    """GB/s."""
    return float(told["bytes"]) / float(told["seconds"]) / 1e9


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| store | server | ceiling GB/s | fusefs GB/s | ratio | CPU s/GB, ceiling | fusefs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = {label: median(map(_speed, told)) for label, told in row["samples"].items()}
        cpu = {
            label: median(one["cpu_s"] / one["bytes"] * 1e9 for one in told)
            for label, told in row["samples"].items()
        }
        lines.append(
            f"| {row['store']} | {row['server']} | {speeds['raw']:.3f} ({row['setting']})"
            f" | {speeds['fusefs']:.3f} | {row['ratio']:.2f}"
            f" | {cpu['raw']:.2f} | {cpu['fusefs']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
