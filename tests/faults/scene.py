"""One fault, one mount, three readers: what became of them.

The chain is readers → mount → link → faulty server → real server, all real, all of one run. The one
idea: readers are processes that are watched from outside, by a file they write and by their end, so
that a read that never returns and one that ends in SIGBUS are measured like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors import safe_open

from tests.faults.faults import NAMES_TTL_S, Fault, folder_of
from tests.faults.link import Link, Weather, open_link
from tests.faults.origin import Origin, open_origin
from tests.faults.reader import PULSE, WAYS, longest_s
from tests.harness.mounted import ROOT, Mounted, open_mount
from tests.harness.watchdog import tear_down
from tests.harness.weed import SECOND_ACCESS_KEY, SECRET_KEY, Weed

SLACK_S = 6.0
"""What a busy machine may add to a deadline; less than a deadline, so that a second one shows."""

HANG_S = 90.0
"""A reader that has not ended so long after all its deadlines hangs."""

SETTLE_S = 75.0
"""How long what is under way may take to end once all is well: silence is noticed after 20 s, a
crawl within 40."""

RECOVERY_S = 60.0
"""How long a load of a file takes at most once all is well."""

POLL_S = 0.05

UNDER_WAY_BYTES = 2 << 20
"""So much has been fetched when a fault strikes in mid-load."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is loaded: files in a folder, and the digests of each, by `files` and by tensor."""

    folder: Path
    wanted: dict[str, dict[str, str]]


def describe(folder: Path) -> Model:
    """A folder of files as the readers compare it: "" is the whole file, names are tensors."""
    wanted: dict[str, dict[str, str]] = {}
    for path in sorted(folder.iterdir()):
        digests = wanted[path.name] = {"": hashlib.sha256(path.read_bytes()).hexdigest()}
        if path.suffix == ".safetensors":
            file: Any = safe_open(path, framework="numpy")
            with file as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no dictionary
                    data = tensors.get_tensor(name).tobytes()
                    digests[name] = hashlib.sha256(data).hexdigest()
    return Model(folder, wanted)


@dataclass(slots=True)
class Outcome:
    """What became of one run of a fault, or of several together."""

    fault: Fault
    struck: int = 0
    loads: int = 0
    became: Counter[str] = field(default_factory=Counter)
    """Files by what became of them: exact, wrong, an errno, SIGBUS, or hung."""
    longest_s: float = 0.0
    status_s: float = 0.0
    recovered: bool = True
    gauges: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    notes: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """What does not agree with the fault's row; nothing if all is as promised."""
        allowed = {"exact"}
        if self.fault.errno:
            allowed |= {self.fault.errno, self.fault.reopened, "SIGBUS"}
        found = [f"{kind}: {n}" for kind, n in self.became.items() if kind not in allowed]
        errors = sum(n for kind, n in self.became.items() if kind not in ("exact", "wrong"))
        if not self.struck:
            found.append("the fault never struck")
        if self.fault.errno and self.fault.seen and not errors:
            found.append(f"nobody saw {self.fault.errno}")
        if not self.became["exact"] and not self.fault.errno:
            found.append("nothing was loaded")
        if self.longest_s > self.fault.bound_s + SLACK_S:
            found.append(f"an access took {self.longest_s:.1f} s")
        if not self.recovered:
            found.append("the mount did not recover")
        if any(self.gauges.values()):
            found.append(f"not all gauges are zero: {self.gauges}")
        return found and [*found, *self.notes]

    def add(self, other: Outcome) -> None:
        """Another run of the same fault."""
        self.struck += other.struck
        self.loads += other.loads
        self.became += other.became
        self.longest_s = max(self.longest_s, other.longest_s)
        self.status_s = max(self.status_s, other.status_s)
        self.recovered &= other.recovered
        self.gauges = {name: max(n, self.gauges.get(name, 0)) for name, n in other.gauges.items()}
        self.requests += other.requests
        self.notes += other.notes


@dataclass(slots=True)
class S3Stage:
    """The chain in front of one bucket. Obeys `faults.Stage`."""

    weed: Weed
    bucket: str
    model: Model
    origin: Origin
    link: Link
    credentials: Path

    def weather(self, weather: Weather) -> int:
        """See `Stage`."""
        return self.link.set(weather)

    def restore(self) -> None:
        """See `Stage`."""
        self._put(lambda data: data)

    def overwrite(self) -> None:
        """See `Stage`."""
        self._put(lambda data: bytes(255 - byte for byte in data[:4096]) + data[4096:])

    def delete(self) -> None:
        """See `Stage`."""
        client = self.weed.client()
        for name in self.model.wanted:
            client.delete_object(Bucket=self.bucket, Key=f"model/{name}")
        client.close()

    def renew(self) -> None:
        """See `Stage`."""
        fresh = self.credentials.with_suffix(".new")
        write_credentials(fresh, SECOND_ACCESS_KEY)
        fresh.rename(self.credentials)

    def _put(self, change: Callable[[bytes], bytes]) -> None:
        client = self.weed.client()
        for folder in ("model", "after"):
            for name in self.model.wanted:
                data = (self.model.folder / name).read_bytes()
                body = change(data) if folder == "model" else data
                client.put_object(Bucket=self.bucket, Key=f"{folder}/{name}", Body=body)
        client.close()


def write_credentials(path: Path, access_key: str) -> None:
    """Credentials as a login writes them."""
    path.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {SECRET_KEY}\n"
    )


@contextmanager
def open_stage(weed: Weed, bucket: str, model: Model, folder: Path) -> Iterator[S3Stage]:
    """A faulty server and a link in front of a bucket that holds the model (see `publish`)."""
    with (
        open_origin(weed.endpoint, folder) as origin,
        open_link(urlsplit(origin.endpoint).port or 0) as link,
    ):
        credentials = folder / "credentials"
        yield S3Stage(weed, bucket, model, origin, link, credentials)


def run_fault(
    fault: Fault, weed: Weed, model: Model, folder: Path, lasts_s: float | None
) -> Outcome:
    """One run, in a bucket of its own."""
    folder = folder_of(folder, fault, time.monotonic_ns())
    client = weed.client()
    bucket = f"faults-{time.monotonic_ns():x}"
    client.create_bucket(Bucket=bucket)
    client.close()
    with open_stage(weed, bucket, model, folder) as stage:
        stage.restore()
        write_credentials(stage.credentials, weed.environment["AWS_ACCESS_KEY_ID"])
        environment = {
            **weed.environment,
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_SHARED_CREDENTIALS_FILE": str(stage.credentials),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{stage.link.port}",
        }
        options = [
            *("--set", "engine.range_size=1M"),
            *("--set", f"engine.read_deadline_s={fault.deadline_s}"),
            *("--set", f"tree.ttl_s={NAMES_TTL_S}"),
        ]
        limit_s = 2 * HANG_S + SETTLE_S + fault.deadline_s * 4
        with open_mount(
            f"s3://{bucket}",
            *options,
            environment=environment,
            limit_s=limit_s,
            warnings_expected=True,
        ) as mounted:
            return Run(fault, stage, mounted, folder, lasts_s).run()


class Run:
    """One run of a fault on a mount that is there.

    The mutable state of Run is its outcome, and the readers.
    """

    def __init__(
        self, fault: Fault, stage: S3Stage, mounted: Mounted, folder: Path, lasts_s: float | None
    ) -> None:
        self._fault = fault
        self._stage = stage
        self._mounted = mounted
        self._folder = folder
        self._lasts_s = lasts_s
        self._outcome = Outcome(fault)

    def run(self) -> Outcome:
        """Load, strike, heal, load again."""
        fault, outcome = self._fault, self._outcome
        if fault.early:
            fault.begin(self._stage)
        with ExitStack() as stack:
            ways = ["names"] if fault.listing else list(WAYS)
            readers = [self._start(way, "model", stack) for way in ways]
            if not fault.early:
                self._wait_under_way(readers)
                fault.begin(self._stage)
            if self._lasts_s is not None:
                self._watch(readers, time.monotonic() + self._lasts_s)
                outcome.struck += fault.end(self._stage)
            self._watch(readers, time.monotonic() + HANG_S + 4 * fault.deadline_s)
            for reader in readers:
                self._take(reader)
            if self._lasts_s is None:
                outcome.struck += fault.end(self._stage)
            outcome.requests = self._mounted.counters()["requests"]
            self._recover(stack)
        return outcome

    def _recover(self, stack: ExitStack) -> None:
        """All is well: files nobody has read yet load, and so do those of before."""
        until = time.monotonic() + RECOVERY_S
        errors_until_s = time.monotonic() + self._fault.returns_s
        for folder in ("after", "model"):
            began_s = time.monotonic()
            while not self._loads(folder, until, stack):
                if began_s > errors_until_s:
                    self._outcome.recovered = False
                    return
                began_s = time.monotonic()
        until = time.monotonic() + SETTLE_S
        while any(self._gauges().values()) and time.monotonic() < until:
            time.sleep(POLL_S)
        self._outcome.gauges = self._gauges()

    def _loads(self, folder: str, until_s: float, stack: ExitStack) -> bool:
        """Whether a folder can be loaded without an error."""
        reader = self._start("read", folder, stack)
        self._watch([reader], until_s)
        ended = reader.poll_result()
        self._outcome.notes.append(f"{folder} afterwards: {ended}")
        return ended is not None and set(ended.values()) == {"exact"}

    def _gauges(self) -> dict[str, int]:
        status = self._mounted.status()
        return {
            "in_flight": status["fetching"]["in_flight"],
            "fetching": status["arena"]["fetching"],
            "pinned": status["arena"]["pinned"],
            "pushing": status["page_cache"]["pushing"],
        }

    def _start(self, way: str, folder: str, stack: ExitStack) -> Reader:
        reader = Reader(way, self._mounted.path / folder, self._stage.model, self._folder)
        stack.callback(reader.kill)
        self._outcome.loads += 1
        return reader

    def _wait_under_way(self, readers: list[Reader]) -> None:
        until = time.monotonic() + HANG_S
        while self._mounted.counters()["bytes_fetched"] < UNDER_WAY_BYTES:
            assert time.monotonic() < until, "the load does not begin"
            assert any(reader.poll_result() is None for reader in readers), "it is over already"
            time.sleep(POLL_S)

    def _watch(self, readers: list[Reader], until_s: float) -> None:
        """Until all readers have ended, or then. Meanwhile the status must answer."""
        while time.monotonic() < until_s:
            if all(reader.poll_result() is not None for reader in readers):
                return
            began_s = time.monotonic()
            self._mounted.status()
            self._outcome.status_s = max(self._outcome.status_s, time.monotonic() - began_s)
            time.sleep(POLL_S)

    def _take(self, reader: Reader) -> None:
        outcome = self._outcome
        result = reader.poll_result()
        if result is None:
            outcome.became["hung"] += 1
            outcome.longest_s = max(outcome.longest_s, reader.longest_s())
            tear_down(self._mounted.path, self._mounted.marker)
            raise AssertionError(f"{self._fault.name}: a reader ({reader.way}) hangs")
        outcome.became.update(result.values())
        outcome.longest_s = max(outcome.longest_s, reader.longest_s())


class Reader:
    """A process that loads, from outside.

    The mutable state of Reader is when its end was seen.
    """

    def __init__(self, way: str, folder: Path, model: Model, scratch: Path) -> None:
        self.way = way
        number = time.monotonic_ns()
        self._pulse = scratch / f"{way}-{number}.pulse"
        self._pulse.write_bytes(bytes(PULSE.size))
        self._output = scratch / f"{way}-{number}.out"
        wanted = scratch / f"{way}-{number}.json"
        wanted.write_text(json.dumps(model.wanted))
        arguments = [way, str(folder), str(wanted), str(self._pulse)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.reader", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._ended_s = 0.0

    def poll_result(self) -> dict[str, str] | None:
        """What became of each file, once it has ended."""
        status = self._process.poll()
        if status is None:
            return None
        self._ended_s = self._ended_s or time.monotonic()
        text = self._output.read_text()
        result: dict[str, str] = {}
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                name, became = json.loads(line)
                result[name] = became
        if status == -signal.SIGBUS:
            result["?"] = "SIGBUS"
        elif status:
            raise AssertionError(f"a reader ({self.way}) failed with {status}: {text[-2000:]}")
        return result

    def longest_s(self) -> float:
        """Its longest access."""
        return longest_s(self._pulse, self._ended_s or time.monotonic())

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
