"""A recording proxy in front of an S3 server: what was asked for, exactly, request by request.

nginx passes every request through unread and writes one line for each. So a test can count LISTs,
HEADs and GETs as the server saw them, rather than as the code under test counts them itself. On
request it refuses everything for a while, as a store does whose credentials ran out, or lets nobody
have a shard.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.harness.weed import choose_ports

READY_TIMEOUT_S = 10.0
"""nginx listens within milliseconds; the rest is for a busy machine."""

# master_process off: one process, which the kernel ends together with us (setpriv). The paths of
# temp files are set because the defaults belong to root.
_CONFIG = """\
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 1024; }}
http {{
  log_format json escape=json '{{"method":"$request_method","uri":"$request_uri",'
    '"range":"$http_range","if_match":"$http_if_match",'
    '"status":$status,"body_bytes":$body_bytes_sent}}';
  access_log access.log json;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp;
  scgi_temp_path tmp;
  client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;
  keepalive_requests 100000;
  upstream origin {{ server {origin}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location = /.proxy-mark {{ return 204; }}
    location = /refusal {{ internal; root {directory}; default_type application/xml; }}
    error_page 418 =403 /refusal;
    location ~ \\.safetensors$ {{
      access_by_lua_block {{
        while os.rename("{directory}/hold", "{directory}/hold") do ngx.sleep(0.01) end
      }}
      if (-f {directory}/refusal) {{ return 418; }}
      proxy_pass http://origin; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header Connection "";
    }}
    location / {{
      if (-f {directory}/refusal) {{ return 418; }}
      proxy_pass http://origin; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header Connection "";
    }}
  }}
}}
"""


class ProxyFailed(Exception):
    """nginx is missing, ended, or does not answer; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived. `operation` is LIST, HEAD, GET, PUT, DELETE, POST or BUCKETS."""

    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    range: str
    if_match: str
    status: int
    body_bytes: int


class RecordingProxy:
    """A running proxy; `endpoint` is to be used in place of the server's own."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        self.endpoint = endpoint
        self._log = directory / "access.log"
        self._refusal = directory / "refusal"
        self._hold = directory / "hold"
        # The mutable state of a proxy is how far its log was cleared and how many marks were set.
        self._start = 0
        self._marks = 0

    def requests(self, operation: str | None = None) -> list[Request]:
        """Return every request answered so far since `clear`, of one operation or of all."""
        self._wait_written()
        with self._log.open("rb") as file:
            file.seek(self._start)
            entries = [json.loads(line) for line in file.read().splitlines()]
        requests = [_request(e) for e in entries if not e["uri"].startswith("/.proxy-mark")]
        return [r for r in requests if operation in (None, r.operation)]

    def clear(self) -> None:
        """Forget the requests so far."""
        self._wait_written()
        self._start = self._log.stat().st_size

    def refuse(self, code: str) -> None:
        """From now on answer everything with status 403 and this code of S3's, until `serve`."""
        fresh = self._refusal.with_suffix(".new")
        fresh.write_text(f"<Error><Code>{code}</Code><Message>no</Message></Error>")
        fresh.rename(self._refusal)

    def serve(self) -> None:
        """Pass requests on again."""
        self._refusal.unlink()

    def hold_shards(self) -> None:
        """From now on requests for `*.safetensors` wait, until `release_shards`."""
        self._hold.touch()

    def release_shards(self) -> None:
        """Answer what waits."""
        self._hold.unlink()

    def _wait_written(self) -> None:
        """Wait until the lines of all answered requests are in the log.

        nginx writes a line after the answer's last byte, so a client may be faster. It is one
        process with one loop: once a later request of ours is in the log, so are all earlier ones.
        """
        self._marks += 1
        mark = f"/.proxy-mark?{self._marks}"
        urllib.request.urlopen(self.endpoint + mark, timeout=READY_TIMEOUT_S).close()
        deadline = time.monotonic() + READY_TIMEOUT_S
        wanted = f'"uri":"{mark}"'.encode()
        while wanted not in self._log.read_bytes():
            if time.monotonic() > deadline:
                raise ProxyFailed(f"{mark} never reached {self._log}")
            time.sleep(0.001)


@contextmanager
def open_recording_proxy(origin: str, directory: Path) -> Iterator[RecordingProxy]:
    """Run a proxy for the server at `origin` ("http://host:port") with its files in `directory`.

    Raises `ProxyFailed`.
    """
    (directory / "tmp").mkdir(parents=True, exist_ok=True)
    (directory / "access.log").touch()
    [port] = choose_ports(1)
    (directory / "nginx.conf").write_text(
        _CONFIG.format(origin=urlsplit(origin).netloc, port=port, directory=directory),
        encoding="utf-8",
    )
    nginx = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if nginx is None:
        raise ProxyFailed("there is no `nginx`: install Debian's nginx-light")
    # -e: the log from before the configuration is read, which else is one of root's.
    options = ["-p", str(directory), "-e", "error.log", "-c", "nginx.conf"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", nginx, *options],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        proxy = RecordingProxy(f"http://127.0.0.1:{port}", directory)
        _wait_ready(process, proxy.endpoint, directory)
        yield proxy
    finally:
        process.kill()
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], endpoint: str, directory: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(endpoint + "/.proxy-mark?ready", timeout=1).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = directory / "error.log"
                said = log.read_text() if log.exists() else "nothing"
                raise ProxyFailed(f"nginx does not answer ({error}); it said: {said}") from error
            time.sleep(0.02)
        else:
            return


def _request(entry: dict[str, str | int]) -> Request:
    parts = urlsplit(str(entry["uri"]))
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = {name: values[0] for name, values in parse_qs(parts.query, True).items()}
    operation = str(entry["method"])
    if operation == "GET" and not key:
        operation = "LIST" if bucket else "BUCKETS"
    return Request(
        operation,
        bucket,
        key,
        query,
        str(entry["range"]),
        str(entry["if_match"]),
        int(entry["status"]),
        int(entry["body_bytes"]),
    )
