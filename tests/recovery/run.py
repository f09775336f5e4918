"""Kills under load: random processes of a mount, at random moments, and what its users saw of it.

The one idea: users must not be able to tell. What they got is compared byte by byte, every error is
counted, and a pulse of small reads shows how long each kill kept them waiting. The moments are not
chosen: a kill may come while the daemon of the one before has not taken over yet.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.harness.watchdog import tear_down
from tests.recovery.actors import MANY, PULSE_FILE, stop
from tests.stress.board import Board

MIB = 1 << 20
CAST = ("bytes", "bytes", "bytes", "names", "names", "loads", "pulse")
"""The actors, each a process."""

VICTIMS = {"fusefs-daemon": 5, "fusefs-fetch": 2, "fusefs-spawner": 1, "fusefs-push": 2}
"""Names of processes, and how often each is chosen."""

MEMORY = "64M"

BETWEEN_S = (0.1, 6.0)
"""From one kill to the next: sometimes before the one before is got over."""

STUCK_S = 150.0
"""Longer than a read may wait for a store, and than a load of the model on a crowded machine."""

NAMES = 1200
"""Files in one folder: more than one page of a listing, and many READDIRs."""


class Stuck(Exception):
    """Somebody made no progress; the message says who."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One process that was killed, and for how long a small read waited after it.

    `is_alone`: that read came back before the next kill; else the pause is that of several.
    """

    at_s: float
    victim: str
    pause_s: float = 0.0
    is_alone: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What a run has done and seen. `complaints` are lines of the actors."""

    kills: tuple[Kill, ...]
    complaints: tuple[str, ...]
    operations: int
    restarts: int
    read_errors: int
    peak_bytes: int

    def lines(self) -> Iterator[str]:
        """A table for people."""
        yield f"{'victim':<18}{'kills':>6}{'median pause':>14}{'longest':>9}"
        alone = [kill for kill in self.kills if kill.is_alone]
        for name in VICTIMS:
            yield from _row(name, [kill.pause_s for kill in alone if kill.victim == name])
        yield from _row("all", [kill.pause_s for kill in alone])
        yield from _row("into a recovery", [k.pause_s for k in self.kills if not k.is_alone])
        wrong = sum(line.startswith("wrong") for line in self.complaints)
        yield (
            f"{self.operations} operations, {wrong} wrong, {len(self.complaints) - wrong} errors;"
            f" {self.restarts} daemons replaced, {self.read_errors} READs refused;"
            f" at most {self.peak_bytes // MIB} MiB in all processes, of {MEMORY} for the arena"
        )
        yield from self.complaints[:20]


def _row(name: str, pauses: list[float]) -> Iterator[str]:
    if pauses:
        median = statistics.median(pauses)
        yield f"{name:<18}{len(pauses):>6}{median:>12.2f} s{max(pauses):>7.2f} s"


def run_kills(
    plain: Path, source: str, times: int, seed: int, environment: Mapping[str, str] | None = None
) -> Report:
    """Kill so often; raises Stuck, or AssertionError as `open_mount`.

    `plain` holds what `source` does: a folder made by `make_plain`.
    """
    chance = random.Random(seed)
    limit_s = times * (BETWEEN_S[1] + 5.0) + 120.0
    with (
        tempfile.TemporaryDirectory() as name,
        open_mount(
            source,
            "--memory",
            MEMORY,
            environment=environment,
            limit_s=limit_s,
            warnings_expected=True,
        ) as mounted,
    ):
        path = Path(name) / "board"
        path.touch()
        board = Board(path, len(CAST) + 1)
        board.begin()
        with mounted.open_peak() as peak, _open_cast(mounted, plain, path) as cast:
            _watch(mounted, path, cast, 3.0)
            kills = []
            for _ in range(times):
                _watch(mounted, path, cast, chance.uniform(*BETWEEN_S))
                kills.append(_kill(mounted, chance))
            _watch(mounted, path, cast, 5.0)
            stop(board, len(CAST))
            _wait_ended(mounted, cast)
        status = mounted.status()
        said = [line for n in range(len(CAST)) for line in _said(path, n)]
    return Report(
        tuple(_with_pauses(kills, said)),
        tuple(line for line in said if not line.startswith("pause")),
        sum(board.read(row).operations for row in range(len(CAST))),
        status["restarts"],
        status["counters"]["read_errors"],
        peak.bytes,
    )


def make_plain(directory: Path) -> None:
    """Write what the actors read: large and small files, many names, a model."""
    from tests.harness.model import make_model

    noise = random.Random(3)
    make_model(directory, shards=2, shard_bytes=8 * MIB)
    for size in (1, 9 * MIB - 1, 40 * MIB + 12_345):
        (directory / f"{size}.bin").write_bytes(noise.randbytes(size))
    (directory / PULSE_FILE).write_bytes(noise.randbytes(8 * MIB))
    (directory / MANY).mkdir()
    for number in range(NAMES):
        name = f"{'name-' * (number % 7)}{number}"
        (directory / MANY / name).write_text(name)


@contextmanager
def _open_cast(
    mounted: Mounted, plain: Path, board: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    cast: list[subprocess.Popen[bytes]] = []
    places = [str(mounted.path), str(plain), str(board), str(len(CAST) + 1)]
    try:
        for row, kind in enumerate(CAST):
            with _said_file(board, row).open("wb") as said:
                command = [sys.executable, "-m", "tests.recovery.actors", kind, *places, str(row)]
                cast.append(subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said))
        yield cast
    finally:
        for actor in cast:
            actor.kill()
            actor.wait()


def _watch(
    mounted: Mounted, board_path: Path, cast: list[subprocess.Popen[bytes]], seconds: float
) -> None:
    """Let time pass; raises Stuck if somebody stands still or is gone."""
    until = time.monotonic() + seconds
    board = Board(board_path, len(CAST) + 1)
    while time.monotonic() < until:
        time.sleep(min(0.1, max(0.0, until - time.monotonic())))
        for row, kind in enumerate(CAST):
            stands_s = time.monotonic() - board.read(row).at_s
            if cast[row].poll() is not None or stands_s > STUCK_S:
                ended = cast[row].poll()
                cast[row].send_signal(signal.SIGUSR1)
                time.sleep(1.0)  # it writes down where it is; if not, it waits in the kernel
                tear_down(mounted.path, mounted.marker)
                where = "\n".join(_said(board_path, row)[-60:])
                raise Stuck(f"{kind}: ended {ended}, or still for {stands_s:.0f} s\n{where}")


def _wait_ended(mounted: Mounted, cast: list[subprocess.Popen[bytes]]) -> None:
    try:
        statuses = [actor.wait(STUCK_S) for actor in cast]
    except subprocess.TimeoutExpired:
        tear_down(mounted.path, mounted.marker)
        raise Stuck("an actor does not end") from None
    assert statuses == [0] * len(cast), f"actors ended with {statuses}"


def _kill(mounted: Mounted, chance: random.Random) -> Kill:
    """Kill a process of the mount, as soon as there is one of the kind that was chosen."""
    victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        pids = [pid for pid in mounted.pids() if _name_of(pid) == victim]
        if pids:
            with contextlib.suppress(ProcessLookupError):  # it went in this moment
                os.kill(chance.choice(pids), signal.SIGKILL)
                return Kill(time.monotonic(), victim)
        time.sleep(0.01)
    raise Stuck(f"there is no {victim}")


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _with_pauses(kills: list[Kill], said: list[str]) -> Iterator[Kill]:
    """Each kill with the longest read of the pulse between it and the next one."""
    pauses = [tuple(map(float, line.split()[1:])) for line in said if line.startswith("pause")]
    for number, kill in enumerate(kills):
        next_s = kills[number + 1].at_s if number + 1 < len(kills) else float("inf")
        waited = [
            (ended - max(began, kill.at_s), ended)
            for began, ended in pauses
            if ended > kill.at_s and began < next_s
        ]
        pause_s, ended_s = max(waited, default=(0.0, 0.0))
        before = any(
            began < earlier.at_s < ended
            for began, ended in pauses
            for earlier in kills[:number]
            if began < kill.at_s < ended
        )
        yield Kill(kill.at_s, kill.victim, pause_s, ended_s < next_s and not before)


def _said(board: Path, row: int) -> list[str]:
    return _said_file(board, row).read_text(errors="replace").splitlines()


def _said_file(board: Path, row: int) -> Path:
    return board.with_name(f"said-{row}")
