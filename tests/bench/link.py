"""A link between clients and any server: a network of its own with a bandwidth.

`origin.py` shapes S3 as a bucket behaves, request by request; this knows no protocol, so that every
kind of store can be seen through it. Clients live in a network namespace, behind a virtual cable
whose far end sends only so fast (tc's token bucket); nginx forwards TCP there, at a rate for each
connection. One idea: the link is slower than the machine, so that it is what bounds, as in a data
centre. Needs root, Debian's iproute2 and libnginx-mod-stream.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.origin import OriginFailed
from tests.bench.processes import stop, with_death_signal
from tests.harness.weed import choose_ports

START_LIMIT_S = 10.0
POLL_S = 0.05
BURST = "4mb"
"""What may be sent at once: several packets of 64 KiB for each of hundreds of connections."""
BACKLOG_MS = 50
"""How much may wait in the cable; more is dropped, and TCP sends it again."""

CONF = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root; worker_processes 1; daemon off;
pid {directory}/nginx.pid; error_log {directory}/nginx.err;
events {{ worker_connections 4096; }}
stream {{
 server {{
  listen {host}:{port} backlog=4096;
  proxy_pass 127.0.0.1:{server};
  proxy_download_rate {rate}; proxy_buffer_size 256k; tcp_nodelay on;
 }}
}}
"""


@dataclass(frozen=True, slots=True)
class Link:
    """A network for clients. `host` is the servers' side of it, `inside` begins a command there."""

    host: str
    inside: tuple[str, ...]
    rate_mb: int

    @contextmanager
    def forward(self, server_port: int) -> Iterator[int]:
        """Make a server of 127.0.0.1 reachable at `host`; yields the port there.

        Raises `OriginFailed` with nginx's log if it does not start.
        """
        with tempfile.TemporaryDirectory(prefix="link-") as name:
            directory = Path(name)
            (port,) = choose_ports(1)
            conf, log = directory / "nginx.conf", directory / "nginx.err"
            rate = self.rate_mb << 20
            conf.write_text(
                CONF.format(
                    directory=directory, host=self.host, port=port, server=server_port, rate=rate
                )
            )
            process = subprocess.Popen(
                with_death_signal(["nginx", "-e", str(log), "-c", str(conf)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                _wait_listening(process, port, log)
                yield port
            finally:
                process.terminate()
                stop(process, START_LIMIT_S)


@contextmanager
def open_link(rate_mb: int, total_mb: int) -> Iterator[Link]:
    """A network where each connection gets `rate_mb` and all together `total_mb`, in MiB/s.

    Raises `OriginFailed`; it is gone afterwards.
    """
    number = os.getpid()
    space, near, far = f"fusefs-bench-{number}", f"fb{number}", f"fb{number}p"
    host, client = f"10.213.{number % 256}.1", f"10.213.{number % 256}.2"
    inside = ("nsenter", f"--net=/var/run/netns/{space}", "--")
    try:
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        _run("ip", "addr", "add", f"{host}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run(*inside, "ip", "addr", "add", f"{client}/30", "dev", far)
        _run(*inside, "ip", "link", "set", far, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        bits = f"{total_mb * 8 << 20}bit"
        shape = ("tbf", "rate", bits, "burst", BURST, "latency", f"{BACKLOG_MS}ms")
        _run("tc", "qdisc", "add", "dev", near, "root", *shape)
        yield Link(host, inside, rate_mb)
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OriginFailed(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the kernel knows of the listener; nobody tells when nginx listens."""
    until = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < until:
        if _is_listening(port):
            return
        time.sleep(POLL_S)
    raise OriginFailed(f"nginx did not start: {log.read_text(errors='replace')[-2000:]}")


def _is_listening(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows)
