"""A link in front of any server: nginx forwards TCP, and gives each connection the same rate.

`origin.py` shapes S3 as a bucket behaves, request by request; this knows no protocol, so that every
kind of store can be seen through it. One idea: what is slow is a connection, so that only many of
them are fast, and the machine's two cores are not what is measured. Needs Debian's
libnginx-mod-stream.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.origin import OriginFailed
from tests.bench.processes import stop, with_death_signal
from tests.harness.weed import choose_ports

START_LIMIT_S = 10.0
POLL_S = 0.05

CONF = """
load_module modules/ngx_stream_module.so;
user root; worker_processes 1; daemon off;
pid {directory}/nginx.pid; error_log {directory}/nginx.err;
events {{ worker_connections 4096; }}
stream {{
 server {{
  listen 127.0.0.1:{port} backlog=4096;
  proxy_pass 127.0.0.1:{server};
  proxy_download_rate {rate}; proxy_buffer_size 256k; tcp_nodelay on;
 }}
}}
"""


@contextmanager
def open_link(server_port: int, rate_mb: int) -> Iterator[int]:
    """Forward to `server_port` at `rate_mb` MiB/s a connection; yields the port to connect to.

    Raises `OriginFailed` with nginx's log if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="link-") as name:
        directory = Path(name)
        (port,) = choose_ports(1)
        conf, log = directory / "nginx.conf", directory / "nginx.err"
        conf.write_text(
            CONF.format(directory=directory, port=port, server=server_port, rate=rate_mb << 20)
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


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until somebody accepts; nobody tells when nginx listens."""
    until = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), START_LIMIT_S).close()
        except ConnectionRefusedError:
            time.sleep(POLL_S)
        else:
            return
    raise OriginFailed(f"nginx did not start: {log.read_text(errors='replace')[-2000:]}")
