"""A real Redis on 127.0.0.1 (Debian's `redis-server`): alone, with a password, with TLS, a cluster.

Not a fake: what a server says about access lists, memory and slots comes from the program people
run. One idea: the servers belong to whoever opened them. Every port is free and ours, all files lie
in one folder, nothing is saved, and the kernel ends them when their opener dies.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from tests.harness.weed import choose_ports

PASSWORD = "correct-horse"
READY_TIMEOUT_S = 30.0
"""A server starts in 50 ms, a cluster agrees within 3 s; the rest is for a machine with work."""
READY_POLL_S = 0.05
START_TRIES = 3
"""Another process may take a port between our look and the server's bind."""
SLOTS = 16384


class RedisFailed(Exception):
    """A server is missing, ended, or did not become ready; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server, or the first node of a cluster."""

    port: int
    directory: Path
    pids: tuple[int, ...]
    cluster: bool = False
    password: str | None = None
    ca_file: Path | None = None

    @property
    def source(self) -> str:
        """The SOURCE of all its models."""
        return f"{'rediss' if self.ca_file else 'redis'}://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server."""
        return {"REDISCLI_AUTH": self.password} if self.password else {}

    def client(self, db: int = 0) -> Any:
        """Return a client of redis-py; the caller closes it."""
        options: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "password": self.password,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.ca_file:
            options |= {"ssl": True, "ssl_ca_certs": str(self.ca_file)}
        return RedisCluster(**options) if self.cluster else redis.Redis(db=db, **options)


@contextmanager
def open_redis(
    directory: Path, *, password: str | None = None, options: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """Run one server with its files in `directory`. `options` are `--name value …`."""
    arguments = [*options, *(("--requirepass", password) if password else ())]
    with _open_process(directory, arguments) as (port, pid):
        server = RedisServer(port, directory, (pid,), password=password)
        _wait_ready(server)
        yield server


@contextmanager
def open_redis_tls(directory: Path) -> Iterator[RedisServer]:
    """Run one server that speaks TLS only, with a certificate for 127.0.0.1 made here."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "tls.crt", directory / "tls.key"
    subject = ["-subj", "/CN=fusefs test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            *subject,
            *files,
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    arguments = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    arguments += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    with _open_process(directory, arguments, tls=True) as (port, pid):
        server = RedisServer(port, directory, (pid,), ca_file=certificate)
        _wait_ready(server)
        yield server


@contextmanager
def open_redis_cluster(directory: Path, nodes: int = 3) -> Iterator[RedisServer]:
    """Run a cluster of primaries that share the slots."""
    with ExitStack() as stack:
        ports: list[int] = []
        pids: list[int] = []
        for number in range(nodes):
            arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]
            opened = _open_process(directory / f"node{number}", arguments, cluster=True)
            port, pid = stack.enter_context(opened)
            ports.append(port)
            pids.append(pid)
        for number, port in enumerate(ports):
            _wait_ready(RedisServer(port, directory / f"node{number}", ()))
            first, stop = SLOTS * number // nodes, SLOTS * (number + 1) // nodes
            with redis.Redis(port=port) as node:
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, stop - 1)
                bus = ("127.0.0.1", ports[0], _bus(ports[0]))
                node.execute_command("CLUSTER", "MEET", *bus)
        for number, port in enumerate(ports):
            _wait_cluster(port, directory / f"node{number}", nodes)
        yield RedisServer(ports[0], directory / "node0", tuple(pids), cluster=True)


@contextmanager
def _open_process(
    directory: Path, arguments: Sequence[str], *, tls: bool = False, cluster: bool = False
) -> Iterator[tuple[int, int]]:
    """Run one process; yields port and pid once it listens."""
    directory.mkdir(parents=True, exist_ok=True)
    binary = shutil.which("redis-server")
    if binary is None:
        raise RedisFailed("there is no redis-server: install Debian's package of that name")
    for attempt in range(1, START_TRIES + 1):
        port, bus = choose_ports(2)
        ports = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
        if cluster:
            ports += ["--cluster-port", str(bus)]

            _BUSES[port] = bus
        command = ["setpriv", "--pdeathsig", "KILL", "--", binary, *ports, *arguments]
        command += ["--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
        command += ["--appendonly", "no", "--daemonize", "no", "--loglevel", "notice"]
        with (directory / "redis.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if _listens(process, directory):
                yield port, process.pid
                return
        finally:
            process.kill()
            process.wait()
        if attempt == START_TRIES or "already in use" not in _log(directory):
            raise RedisFailed(f"redis-server ended: {_log(directory)}")


_BUSES: dict[int, int] = {}
"""The port on which the nodes of a cluster talk to each other, by the one for clients."""


def _bus(port: int) -> int:
    return _BUSES[port]


def _listens(process: subprocess.Popen[bytes], directory: Path) -> bool:
    """Wait until the log says so; False if the process ended."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None:
        if "Ready to accept connections" in _log(directory):
            return True
        if time.monotonic() > deadline:
            raise RedisFailed(f"redis-server is not ready: {_log(directory)}")
        time.sleep(READY_POLL_S)
    return False


def _log(directory: Path) -> str:
    return (directory / "redis.log").read_text(errors="replace")[-2000:]


def _wait_ready(server: RedisServer) -> None:
    with server.client() as client:
        assert client.ping()


def _wait_cluster(port: int, directory: Path, nodes: int) -> None:
    """Wait until a node knows all others and all slots."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    with redis.Redis(port=port) as node:
        while True:
            info: Any = node.execute_command("CLUSTER INFO")
            text = info if isinstance(info, dict) else {}
            agreed = text.get("cluster_state") == "ok"
            slots: Any = node.execute_command("CLUSTER SLOTS")
            if agreed and len(slots) == nodes:
                return
            if time.monotonic() > deadline:
                raise RedisFailed(f"the cluster does not agree: {text} {_log(directory)}")
            time.sleep(READY_POLL_S)
