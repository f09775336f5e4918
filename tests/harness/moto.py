"""Amazon's side of S3 on 127.0.0.1: the moto server, for what SeaweedFS lacks.

It keeps versions, gives roles and session tokens, and checks signatures and policies, all in the
memory of a process of its own. Not a witness for speed. One idea: like `tests/harness/weed.py`, the
server belongs to whoever opened it, and the kernel ends it when its opener dies.
"""

from __future__ import annotations

import http.client
import json
import os
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

from tests.harness.weed import REGION, choose_ports

READY_TIMEOUT_S = 60.0
"""Importing moto takes 2 s on an idle core; the rest is for a machine with other work."""
READY_POLL_S = 0.1
"""How long to wait between two looks at a server that is starting."""
START_TRIES = 3

_SETUP_ACTIONS = 3
"""What `_make_owner` asks for before moto begins to check who asks."""


class MotoFailed(Exception):
    """The server ended or did not answer; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Moto:
    """A running server and the keys of a user who may do everything."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server and see no other account."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str = "s3") -> Any:
        """Return a boto3 client of the user who may do everything."""
        return _client(service, self.endpoint, self.access_key, self.secret_key)

    def excuse_next(self) -> None:
        """Let one request pass unchecked.

        Moto wants a signature on AssumeRoleWithWebIdentity, which at Amazon has none.
        """
        host = self.endpoint.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=READY_TIMEOUT_S)
        try:
            connection.request("POST", "/moto-api/reset-auth", "1")
            status = connection.getresponse().status
        finally:
            connection.close()
        if status != http.client.OK:
            raise MotoFailed(f"moto does not excuse a request (status {status})")

    def make_user(self, name: str, policy: dict[str, Any]) -> dict[str, str]:
        """Make a user who may do what `policy` allows; return its part of an environment."""
        client = self.client("iam")
        try:
            return _make_user(client, name, policy)
        finally:
            client.close()


@contextmanager
def open_moto(directory: Path) -> Iterator[Moto]:
    """Run a server whose log is in `directory`. Raises `MotoFailed`."""
    log = directory / "moto.log"
    process, endpoint = _start(log)
    try:
        client = _client("iam", endpoint, "before", "before")
        try:
            owner = _make_user(client, "owner", allow("*", "*"))
        finally:
            client.close()
        yield Moto(endpoint, owner["AWS_ACCESS_KEY_ID"], owner["AWS_SECRET_ACCESS_KEY"])
    finally:
        process.kill()
        process.wait()


def allow(actions: str | list[str], resources: str | list[str]) -> dict[str, Any]:
    """A policy of one statement."""
    statement = {"Effect": "Allow", "Action": actions, "Resource": resources}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _make_user(client: Any, name: str, policy: dict[str, Any]) -> dict[str, str]:
    client.create_user(UserName=name)
    key = client.create_access_key(UserName=name)["AccessKey"]
    client.put_user_policy(UserName=name, PolicyName="it", PolicyDocument=json.dumps(policy))
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }


def _client(service: str, endpoint: str, access_key: str, secret_key: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=16),
    )


def _start(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server; on another port if somebody took it meanwhile."""
    for _ in range(START_TRIES):
        (port,) = choose_ports(1)
        process = _spawn(log, port)
        try:
            if _answers(process, port):
                return process, f"http://127.0.0.1:{port}"
        except BaseException:
            process.kill()
            process.wait()
            raise
    raise MotoFailed(f"moto does not start: {log.read_text(errors='replace')[-2000:]}")


def _spawn(log: Path, port: int) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            # The kernel kills it with us, also when we are killed ourselves.
            [
                *("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-c"),
                *("from moto.server import main; main()", "--host=127.0.0.1", f"--port={port}"),
            ],
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "INITIAL_NO_AUTH_ACTION_COUNT": str(_SETUP_ACTIONS),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the opener
        )


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it listens; False if it ended instead."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT_S)
        try:
            connection.request("GET", "/moto-api/")
            return connection.getresponse().status == http.client.OK
        except ConnectionRefusedError:
            # Nobody tells when it listens; its end is told at once.
            try:
                process.wait(READY_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            return False
        finally:
            connection.close()
    return False
